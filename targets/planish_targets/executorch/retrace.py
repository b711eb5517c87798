"""Retraces that compute again only what has changed, and graph modules whose Python code nobody asks for.

Most passes of executorch run a whole program on fake tensors to build a new graph, and most of them change little or
nothing in it. Here an operator that is given what looks like what it was given before returns what it returned then;
and where the result looks just like the value that the node had, that value stays, so that what follows is as before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.fx.experimental.sym_node import SymNode
from torch.fx.graph import _PyTreeCodeGen
from torch.utils._pytree import tree_map_only

from planish_targets.executorch.replaced import replaced

_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


class Memory:
    """What operators made of fake tensors, by operator and by what its arguments look like.

    Equal layers ask for equal things, so that one layer is computed and the others are told. Values of a graph may then
    be one object where they look alike: a node's value says what it is like, and nothing tells it from others by it.
    """

    def __init__(self) -> None:
        self._made: dict[Any, tuple[Any, Any]] = {}
        self._seen: dict[int, tuple[Any, Any]] = {}  # id -> (object, its name): the object is held, the `id` stays its
        self._names: dict[Any, int] = {}

    def call(self, compute: Callable[..., Any], target: Any, args: Any, kwargs: Any, known: Any) -> Any:
        """`compute(target, args, kwargs)`, or an equal result from before.

        Args:
            known: the value that the node had.
        """
        if chosen_at_run_time(operator_of(target)):
            # Another number at every node, however alike what it is taken from; torch would remember it at the tensor.
            return compute(target, *_detached(args, kwargs)) if known is None else known
        key = self._asked(target, args, kwargs)
        if key is None:
            return compute(target, args, kwargs)
        if key not in self._made:
            found = compute(target, args, kwargs)
            self._made[key] = known if alike(found, known) else found, known
        return self._made[key][0]

    def learn(self, nodes: Iterable[fx.Node]) -> None:
        """Take the values of nodes for what their operators make, of a graph whose values are fresh."""
        for node in nodes:
            if node.op != "call_function" or "val" not in node.meta:
                continue
            try:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), _value)
            except _NamelessError:
                continue
            value = node.meta["val"]
            key = self._asked(node.target, args, kwargs)
            if key is not None:
                self._made.setdefault(key, (value, value))

    def key(self, value: Any) -> Any:
        """What tells a value, or a structure of values, from others that operators would treat in another way."""
        if isinstance(value, _PLAIN):
            return type(value), value
        if isinstance(value, (list, tuple)):
            return tuple(self.key(v) for v in value)
        if isinstance(value, dict):
            return tuple((k, self.key(v)) for k, v in value.items())
        if not isinstance(value, (torch.Tensor, nn.Module, torch._ops.OpOverload, *_SYMBOLIC)):
            raise _NamelessError
        if id(value) not in self._seen:
            look = _look(value)
            name = id(value) if look is None else -1 - self._names.setdefault(look, len(self._names))
            self._seen[id(value)] = value, name
        return self._seen[id(value)][1]

    def _asked(self, target: Any, args: Any, kwargs: Any) -> Any:
        operator = operator_of(target)
        if operator is None or chosen_at_run_time(operator):
            return None
        try:
            return operator, self.key(args), self.key(kwargs)
        except _NamelessError:
            return None


def _detached(args: Any, kwargs: Any) -> Any:
    return tree_map_only(FakeTensor, torch.Tensor.detach, (args, kwargs))


def _look(value: Any) -> Any:
    """A fake tensor's or a symbol's properties, all that operators ask for; None for what is told by identity."""
    if isinstance(value, _SYMBOLIC):
        return (type(value), value.node.expr, id(value.node.shape_env)) if isinstance(value.node, SymNode) else None
    if type(value) is not FakeTensor or value.constant is not None or value.layout != torch.strided:
        return None
    laid = (*value.shape, *value.stride(), value.storage_offset())
    numbers = tuple(n.node.expr if isinstance(n, torch.SymInt) else n for n in laid)
    return numbers, id(value.fake_mode), isinstance(value, nn.Parameter), *_kind(value)


def _kind(value: torch.Tensor) -> tuple[Any, ...]:
    return value.dtype, value.device, value.layout, value.requires_grad, value.is_conj(), value.is_neg()


def chosen_at_run_time(operator: Any) -> bool:
    """True for what makes numbers or shapes that no shape of its arguments tells."""
    tags = getattr(operator, "tags", ())
    return torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags


def _value(node: fx.Node) -> Any:
    """What a retrace gives to the readers of a node."""
    if node.op == "get_attr":
        return getattr(node.graph.owning_module, str(node.target))
    if "val" not in node.meta:
        raise _NamelessError
    value = node.meta["val"]
    constant = getattr(value, "constant", None) if node.op == "placeholder" else None
    return value if constant is None else constant


def memory_of(mode: Any) -> Memory:
    """What belongs to a mode of fake tensors, and goes with it."""
    found: Memory = vars(mode).setdefault("planish_memory", Memory())
    return found


class _NamelessError(Exception):
    """A value that is not told from others by identity or by itself."""


def operator_of(target: Any) -> Any:
    """What computes the call, or None where its result is not a matter of the arguments alone."""
    if getattr(target, "__module__", "") == "_operator":
        return target
    operator = target
    if not isinstance(operator, torch._ops.OpOverload):
        from executorch.exir.delegate import executorch_call_delegate
        from executorch.exir.dialects.edge._ops import EdgeOpOverload

        if operator in (executorch_call_delegate, torch.ops.higher_order.auto_functionalized_v2):
            return operator
        operator = target._op if isinstance(target, EdgeOpOverload) else None
    if not isinstance(operator, torch._ops.OpOverload) or torch.Tag.inplace_view in operator.tags:
        return None
    return operator


def alike(a: Any, b: Any) -> bool:
    """True where two values of nodes say the same: dtypes, sizes, strides and numbers, by their symbols."""
    if type(a) is not type(b):
        return False
    if isinstance(a, FakeTensor):
        kind = [(t.fake_mode, *_kind(t)) for t in (a, b)]
        laid = [(*t.shape, *t.stride(), t.storage_offset()) for t in (a, b)]
        return kind[0] == kind[1] and len(laid[0]) == len(laid[1]) and all(map(alike, *laid))
    if isinstance(a, _SYMBOLIC):
        return bool(a.node.expr == b.node.expr)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b))
    return isinstance(a, _PLAIN) and a == b


class _Remembering:
    """An interpreter of one call that asks a memory first."""

    def __init__(self, interpreter: fx.Interpreter, memory: Memory, known: Any) -> None:
        self._interpreter, self._memory, self._known = interpreter, memory, known

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._memory.call(self._interpreter.call_function, target, args, kwargs, self._known)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._interpreter, name)


@contextlib.contextmanager
def remembered() -> Iterator[Memory]:
    """Within this, passes that retrace a program do not compute again what they have computed."""
    from executorch.exir.pass_base import _ExportPassBase
    from torch._export.pass_base import _ExportPassBaseDeprecatedDoNotUse

    memory = Memory()
    plain = {kind: kind._fx for kind in (_ExportPassBase, _ExportPassBaseDeprecatedDoNotUse)}

    def asking(compute: Callable[..., Any]) -> Callable[..., Any]:
        def _fx(self: Any, kind: str, target: Any, args: Any, kwargs: Any, meta: Any) -> Any:
            interpreter = self.interpreter
            self.interpreter = _Remembering(interpreter, memory, meta.data.get("val"))
            try:
                return compute(self, kind, target, args, kwargs, meta)
            finally:
                self.interpreter = interpreter

        return _fx

    with contextlib.ExitStack() as stack:
        for kind, compute in plain.items():
            stack.enter_context(replaced(kind, _fx=asking(compute)))
        yield memory


_COMPILE = fx.GraphModule.recompile


@contextlib.contextmanager
def compiled() -> Iterator[None]:
    """Within this, and within `uncompiled`, graph modules get their code at once: `torch.export` traces no other."""
    with replaced(fx.GraphModule, recompile=_COMPILE):
        yield


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Within this, a graph module gets its Python code when it is called, which interpreters never do."""
    compile_now = fx.GraphModule.recompile
    unlift = ExportedProgram.module

    def later(self: fx.GraphModule) -> None:
        codegen = self._graph._codegen
        if isinstance(codegen, _PyTreeCodeGen):
            self._in_spec, self._out_spec = codegen.pytree_info.in_spec, codegen.pytree_info.out_spec

        def forward(module: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
            compile_now(module)
            return type(module).forward(module, *args, **kwargs)

        type(self).forward = forward  # every graph module has a class of its own

    def ready(self: ExportedProgram, *given: Any, **named: Any) -> nn.Module:
        module = unlift(self, *given, **named)
        for part in module.modules():  # to be called, by dynamo too, which would trace into the compilation
            if isinstance(part, fx.GraphModule):
                compile_now(part)
        return module

    # of debug messages that nobody prints
    silent: dict[str, Any] = {"__str__": object.__str__, "print_readable": lambda *_, **__: ""}
    with replaced(ExportedProgram, module=ready), replaced(fx.GraphModule, recompile=later, **silent):
        yield
