"""From one FX node to MIL operations: what every emitter needs, and the table of emitters by operator name."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from torch import fx

from planish_passes.errors import PlanishError
from planish_passes.program import Program, module_path, op_name
from planish_targets.coreml.emit.constants import Array, Constants
from planish_targets.coreml.emit.naming import Naming, State, Var
from planish_targets.coreml.emit.sizes import Size, Sizes, fixed, is_size, size_of
from planish_targets.coreml.sdk import HALF_MAX, Sdk

OPS: dict[str, Callable[[Emitter, fx.Node], Any]] = {}


def emits(*names: str) -> Callable[[Callable[[Emitter, fx.Node], Any]], Callable[[Emitter, fx.Node], Any]]:
    """Register an emitter for operators by name (overloads share one)."""

    def register(emitter: Callable[[Emitter, fx.Node], Any]) -> Callable[[Emitter, fx.Node], Any]:
        OPS.update(dict.fromkeys(names, emitter))
        return emitter

    return register


class Layout(Protocol):
    """Another layout of values, which some nodes have a form in (`channels_first`)."""

    def emit(self, node: fx.Node) -> bool:
        """Emit a node in it; False when the node has no such form."""
        ...

    def back(self, node: fx.Node) -> Var | None:
        """A value that exists in it only, in its own layout; None for other nodes."""
        ...


class Emitter:
    """Emits the nodes of a program, in order, into the MIL function that is open.

    Floats are emitted as fp32; coremltools' fp16 pass narrows operations and constants afterwards, so that what
    depends on constants alone is folded in fp32 and rounded once. Integers are int32: Core ML has no int64 arithmetic.

    Args:
        program: fixed shapes; composites kept.
        sdk: coremltools.
        arrays: weights that were read already, by name; functions of one package share it.
        shared: names of the weights that all these functions have.
        large: names of nodes whose values fp16 cannot be trusted to hold; their operations stay fp32.

    Attributes:
        layout: tried for each node first; None = none.
        ane: forms that the Apple Neural Engine is said to prefer, where there is a choice.
        masks: causal masks that are inputs, [1, 1, Q, C], to be added to scores; by window and chunk.
    """

    def __init__(
        self,
        program: Program,
        sdk: Sdk,
        *,
        arrays: dict[str, Array],
        shared: frozenset[str],
        large: frozenset[str],
    ) -> None:
        self.program = program
        self.mb = Naming(sdk.mb)
        self.sizes = Sizes(self.mb, self._no_size)
        self.types = sdk.types
        self.notes: list[str] = []
        self.states: dict[str, State] = {}  # by name of the node that stands for it
        self.large = large
        self._sdk = sdk
        self.weights = Constants(program, self.mb, sdk, arrays=arrays, shared=shared, note=self.note)
        self._once: dict[Hashable, Var] = {}
        self._node: fx.Node | None = None
        self._instead: dict[str, Var] = {}
        self.layout: Layout | None = None
        self.ane = False
        self.masks: dict[tuple[int, int], Var] = {}
        frontend = sdk.torch_context.TorchFrontend.TORCHEXPORT
        self._table = sdk.torch_context.TranscriptionContext(frontend=frontend)

    def bind(self, node: fx.Node, value: Any) -> None:
        """Make `value` (a MIL value, or a tuple of them) the result of a node."""
        self._table.add(value, node.name)

    def emit(self, node: fx.Node) -> None:
        """Emit one call.

        Raises:
            PlanishError: no form in Core ML; names the operator and its source module.
        """
        if is_size(node):
            return  # it is computed where it is used
        emitter = OPS.get(op_name(node))
        self.mb.start(node.name)
        self._node = node
        self.mb.wide = node.name in self.large
        try:
            if self.layout is not None and self.layout.emit(node):
                return
            if emitter is not None:
                self.bind(node, emitter(self, node))
            else:
                self._delegate(node)
            self._check(node)
        except (PlanishError, MemoryError):
            raise
        except Exception as problem:  # the SDK raises whatever its own checks raise; each is a refusal of this node
            reason = next(iter(str(problem).strip().splitlines()), repr(problem))
            raise self.refusal(node, reason) from problem
        finally:
            self.mb.wide = False

    @contextmanager
    def full_precision(self, wanted: bool = True) -> Iterator[None]:
        """Operations that are made inside stay fp32, if that is wanted."""
        before, self.mb.wide = self.mb.wide, self.mb.wide or wanted
        try:
            yield
        finally:
            self.mb.wide = before

    @contextmanager
    def instead(self, values: dict[str, Var]) -> Iterator[None]:
        """While a node is emitted, other values for the nodes of these names."""
        self._instead = values
        try:
            yield
        finally:
            self._instead = {}

    def once(self, key: Hashable, build: Callable[[], Var]) -> Var:
        """A value that several nodes compute from the same things (masks, angles): the first one's."""
        if key not in self._once:
            self._once[key] = build()
        return self._once[key]

    def refusal(self, node: fx.Node, reason: str) -> PlanishError:
        """The error for a node that has no form in Core ML."""
        return PlanishError(
            f"Core ML cannot encode {op_name(node)}: {reason}",
            f"{module_path(node) or 'the model itself'} (node {node.name})",
            "compile for another target, or add an emitter that builds it from MIL operations to "
            "planish_targets/coreml/emit",
        )

    def _no_size(self, reason: str) -> PlanishError:
        assert self._node is not None
        return self.refusal(self._node, reason)

    def value(self, argument: Any) -> Var:
        """The MIL value of a node; weights become constants on first use."""
        assert isinstance(argument, fx.Node), f"{argument!r} is not a tensor"
        if argument.name in self._instead:
            return self._instead[argument.name]
        if argument.name not in self._table:
            turned = None if self.layout is None else self.layout.back(argument)
            if turned is not None:
                self.bind(argument, turned)
            elif is_size(argument):
                self.bind(argument, self.mb.identity(x=self.sizes.scalar(size_of(argument))))
            elif (name := self.weights.name(argument)) is not None:
                self.bind(argument, self.weights.plain(name))
            elif argument.name in self.states:
                raise self.refusal(argument, "a whole cache is read before it is written")
        return self._table[argument.name]

    def numpy(self, argument: fx.Node) -> Array | None:
        """The values of a node that is a constant in MIL, else None."""
        return self.value(argument).val  # type: ignore[no-any-return]

    def operand(self, argument: Any, dtype: torch.dtype) -> Var:
        """A node's value or a number, converted to the MIL type that stands for `dtype`."""
        if isinstance(argument, fx.Node):
            return self.cast(self.value(argument), dtype)
        return self.literal(argument, dtype)

    def literal(self, number: float | int | bool, dtype: torch.dtype) -> Any:
        """A number of the MIL type that stands for `dtype`; floats beyond fp16 become its largest finite ones."""
        kind = mil_type(dtype)
        if kind == "fp32":
            return np.float32(self.finite(float(number)))
        return np.int32(number) if kind == "int32" else np.bool_(number)

    def finite(self, number: float) -> float:
        """Clamp to the range of fp16: an infinite mask fill turns a fully masked row into NaN there."""
        if abs(number) > HALF_MAX:
            self.note("mask fills beyond the range of fp16 are stored as -65504 or 65504")
            return float(np.clip(number, -HALF_MAX, HALF_MAX))
        return number

    def note(self, text: str) -> None:
        """A message for the artifact's notes, once."""
        if text not in self.notes:
            self.notes.append(text)

    def cast(self, var: Var, dtype: torch.dtype, name: str | None = None) -> Var:
        """Convert to the MIL type that stands for `dtype`, if it is another one."""
        kind = mil_type(dtype)
        if self.types.builtin_to_string(var.dtype) == kind:
            return var
        return self.mb.cast(x=var, dtype=kind, **({"name": name} if name else {}))

    def broadcast(self, var: Var, shape: Iterable[Size], name: str | None = None) -> Var:
        """Repeat dimensions of size 1, and add leading ones, up to `shape`."""
        wanted = tuple(shape)
        named = {"name": name} if name else {}
        given = (1,) * (len(wanted) - len(var.shape)) + tuple(var.shape)
        if given != tuple(var.shape):
            var = self.sizes.reshape(var, given)
        repeats = [1 if w == g or g == 0 else w if g == 1 else w // g for w, g in zip(wanted, given, strict=True)]
        return var if set(repeats) <= {1} else self.mb.tile(x=var, reps=self.sizes.vector(repeats), **named)

    def _delegate(self, node: fx.Node) -> None:
        # coremltools' own converter; its node form reads these five fields of an FX node and nothing else
        for source in node.all_input_nodes:
            self.value(source)
        args, kwargs = fx.node.map_aggregate((node.args, dict(node.kwargs)), self._tame)  # type: ignore[misc]
        name = f"{node.name}__{op_name(node).rpartition('.')[2]}"
        plain = SimpleNamespace(target=node.target, args=args, kwargs=kwargs, name=name, meta=node.meta)
        converted = self._sdk.torch_nodes.InternalTorchIRNode.from_exir_node(plain)
        self._sdk.torch_ops.convert_single_node(self._table, converted)
        result = self._table[name]
        if self.mb.wide:
            self.mb.keep(result, [self._table[source.name] for source in node.all_input_nodes])
        self.bind(node, result if isinstance(result, (tuple, list)) else self.cast(result, dtype_of(node)))

    def _tame(self, argument: Any) -> Any:
        return self.finite(argument) if isinstance(argument, float) else argument

    def _check(self, node: fx.Node) -> None:
        expected, result = node.meta["val"], self._table[node.name]
        several = isinstance(expected, (tuple, list))
        pairs = zip(expected, result, strict=False) if several else [(expected, result)]
        settled = [self._settled(node, want, have) for want, have in pairs]
        if any(new is not old for new, old in zip(settled, result if several else [result], strict=False)):
            self.bind(node, tuple(settled) if several else settled[0])

    def _settled(self, node: fx.Node, want: Any, have: Any) -> Any:
        """The result, with a shape that MIL could not infer written down; refused when its shape is another."""
        if not isinstance(want, torch.Tensor) or have is None:
            return have
        shape = tuple(size_of(s) for s in want.shape)
        if tuple(have.shape) == shape:
            return have
        pairs = list(zip(have.shape, shape, strict=False))
        if len(have.shape) != len(shape) or any(h != w for h, w in pairs if fixed([h]) or fixed([w])):
            raise self.refusal(node, f"it came out with shape {tuple(have.shape)}, expected {shape}")
        # of a slice of known size MIL knows the shape
        return self.mb.slice_by_size(x=have, begin=[0] * len(shape), size=self.sizes.vector(shape))


def mil_type(dtype: torch.dtype) -> str:
    """The MIL type that stands for a torch type before narrowing: fp32, int32 or bool."""
    if dtype == torch.bool:
        return "bool"
    return "fp32" if dtype.is_floating_point else "int32"


def arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments of a call by the names of the operator's schema, defaults filled in."""
    assert isinstance(node.target, torch._ops.OpOverload)
    schema = node.target._schema.arguments
    given = dict(zip((a.name for a in schema), node.args, strict=False)) | dict(node.kwargs)
    return {a.name: given.get(a.name, a.default_value) for a in schema}


def dtype_of(node: fx.Node) -> torch.dtype:
    """The element type of a node's result."""
    dtype = node.meta["val"].dtype
    assert isinstance(dtype, torch.dtype)
    return dtype
