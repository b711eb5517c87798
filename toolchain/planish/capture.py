"""Model class to program: one trace on the meta device, no weight in memory."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from planish import hooks
from planish.exhausted import exhausted
from planish.expectations import count_calls, with_expectations
from planish.meta import build_without_weights
from planish.tasks.base import Axis, Call, Task
from planish.tracing import quick_tracing
from planish.untraceable import first_line, untraceable
from planish_passes.errors import PlanishError
from planish_passes.program import Port, Program, module_path, op_name, writes
from planish_passes.weights import WeightStore

_EXAMPLES = {"batch": 3, "past": 11}  # of a dimension; another value for each keeps their symbols apart
_FIXED = {"batch": 1, "sequence": 128}  # where nothing can be left open
_PLAIN = "eager"  # transformers' name of attention that is written out


@dataclass(frozen=True)
class Captured:
    """A program and what capture had to decide on the way."""

    program: Program
    notes: tuple[str, ...]


def capture(
    model_class: Any,
    config: Any,
    task: Task,
    weights: Callable[[nn.Module], WeightStore],
    fixed: Mapping[str, int] | None = None,
) -> Captured:
    """Trace the model once, with symbolic dimensions.

    Args:
        model_class: an Auto class or model class of transformers.
        config: its config.
        task: decides inputs and outputs.
        weights: maps the model without weights to its weights (`Source.weights`).
        fixed: sizes of dimensions for models that cannot be traced with symbolic ones (default: batch 1, 128 tokens).

    Raises:
        PlanishError: the model cannot be traced; names the cause.
    """
    notes: list[str] = []
    try:
        traced = _trace(model_class, config, task, hooks.IMPLEMENTATION, fixed)
    except PlanishError as problem:
        if not isinstance(problem.__cause__, Exception):
            raise  # refused for what it is, not for what happened on the way
        try:
            traced = _trace(model_class, config, task, _PLAIN, fixed)
        except PlanishError:
            raise problem from problem.__cause__
        notes.append(f"{problem.what}; captured with plain attention")
    except hooks.Unhooked as problem:
        notes.append(f"{problem}; captured with plain attention")
        traced = _trace(model_class, config, task, _PLAIN, fixed)
    program = _program(task.entry, traced.exported, traced.call, weights)
    program = with_expectations(program, traced.calls)
    return Captured(program, (*notes, *traced.notes))


@dataclass(frozen=True)
class _Traced:
    """A trace, what was traced, and (module, operator) calls on the way."""

    exported: ExportedProgram
    call: Call
    calls: list[tuple[str, str]]
    notes: list[str]


def _trace(
    model_class: Any, config: Any, task: Task, attention: str, fixed: Mapping[str, int] | None = None
) -> _Traced:
    """One attempt with an attention implementation.

    Raises:
        hooks.Unhooked: the attention is not, or not only, what the hook carries.
        PlanishError: the model is refused, or (with a cause) its own code stopped.
    """
    name, calls, notes = getattr(model_class, "__name__", str(model_class)), list[tuple[str, str]](), list[str]()
    try:
        try:
            model = build_without_weights(model_class, config, attention)
        except (KeyError, ValueError) as problem:
            if attention == _PLAIN:
                raise
            raise hooks.Unhooked(f"attention is not hooked ({problem})") from problem
        name = type(model).__name__
        call = task.call(config, model)
        with count_calls(model, calls):
            exported = _export(call, calls, notes, {**_FIXED, **(fixed or {})})
    except (hooks.Unhooked, PlanishError):
        raise
    except Exception as problem:  # model code raises whatever it likes; the cause is kept and named
        if exhausted(problem):
            raise
        raise untraceable(name, problem) from problem
    _stateless(exported, name)
    found = Counter(op_name(n) for n in exported.graph.nodes if n.op == "call_function")
    bypassed = _bypassed(exported, found, call, config) if attention == hooks.IMPLEMENTATION else None
    if bypassed is not None:
        raise hooks.Unhooked(bypassed)
    return _Traced(exported, call, calls, notes)


def _stateless(exported: ExportedProgram, name: str) -> None:
    """Refuse a forward that changes one of its own buffers: a program has no state but its cache."""
    kept = {s.arg.name: s.target for s in exported.graph_signature.input_specs if s.target is not None}
    for node in exported.graph.nodes:
        if node.op != "call_function" or not writes(node):
            continue
        changed = node.args[0]
        while isinstance(changed, fx.Node) and _is_view(changed):
            changed = changed.args[0]
        if isinstance(changed, fx.Node) and changed.name in kept:
            raise PlanishError(
                f"{name} changes {kept[changed.name]} while it runs",
                module_path(node).removeprefix("model.") or "its forward",
                "a model must keep nothing but keys and values between calls (rope of type 'longrope' does)",
            )


def _is_view(node: fx.Node) -> bool:
    if op_name(node) == "getitem":
        return True
    returns = node.target._schema.returns if isinstance(node.target, torch._ops.OpOverload) else ()
    return any(r.alias_info is not None for r in returns)


def _bypassed(exported: ExportedProgram, found: Counter[str], call: Call, config: Any) -> str | None:
    """How the model goes past the attention hook, or None. Half a hook is worse than none: masks would be lost."""
    attention = found["planish.attention"]
    if call.states:
        predicted = len(call.states) // 2
        for node in exported.graph.nodes:
            if node.op == "call_function" and op_name(node) == "planish.causal_mask":
                others = [u for u in node.users if u.op != "call_function" or op_name(u) != "planish.attention"]
                if others:
                    return f"the causal mask is also used by {', '.join(sorted(op_name(u) for u in others))}"
        return f"attention hook saw {attention} of {predicted} layers" if attention < predicted else None
    predicted = int(getattr(config, "num_hidden_layers", 0) or 0)
    if predicted and attention != predicted and found["aten.softmax"]:
        return f"attention hook saw {attention} of {predicted} layers"
    return None


def _export(call: Call, calls: list[tuple[str, str]], notes: list[str], fixed: Mapping[str, int]) -> ExportedProgram:
    step, inputs = call.step.eval(), call.inputs
    tensors = tuple(torch.zeros([_example(d) for d in i.shape], dtype=i.dtype) for i in inputs)
    # A table of positions that is sliced by past + sequence bounds their sum; no range up to the bound fits that.
    room = 2 if call.states else 0
    axes = {d.name: Dim(d.name, min=d.low, max=d.high - room) for i in inputs for d in i.shape if isinstance(d, Axis)}
    dynamic = tuple({k: axes[d.name] for k, d in enumerate(i.shape) if isinstance(d, Axis)} for i in inputs)
    try:
        return _exported(step, tensors, dynamic)
    except hooks.Unhooked:
        raise
    except Exception as problem:  # torch.export raises many unrelated types
        if call.states or exhausted(problem):
            raise
        calls.clear()  # of the attempt that failed
        open_ones = {d.name: d for i in inputs for d in i.shape if isinstance(d, Axis)}
        sizes = {name: _example(d, fixed) for name, d in open_ones.items()}
        tensors = tuple(torch.zeros([_example(d, sizes) for d in i.shape], dtype=i.dtype) for i in inputs)
        exported = _exported(step, tensors, None)  # what stops here too is the better reason
        told = ", ".join(f"{n} {size}" for n, size in sizes.items())
        notes.append(f"shapes are fixed ({told}): dynamic ones were refused by torch.export ({first_line(problem)})")
        return exported


def _exported(step: nn.Module, tensors: tuple[Tensor, ...], shapes: tuple[Any, ...] | None) -> ExportedProgram:
    from transformers.exporters import exporter_dynamo  # noqa: F401  (registers the patches)
    from transformers.exporters.utils import apply_patches

    with torch.no_grad(), apply_patches("dynamo"), quick_tracing():
        exported = torch.export.export(
            step,
            tensors,
            dynamic_shapes=None if shapes is None else _by_parameter(step, shapes),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    _relink(exported.graph)
    return exported


def _relink(graph: fx.Graph) -> None:
    """Enter every reader of a value into its users: torch.export (2.13) forgets some of those of outputs, and such a
    reader cannot be erased."""
    for node in graph.nodes:
        for source in node.all_input_nodes:
            source.users.setdefault(node)


def _by_parameter(step: nn.Module, shapes: tuple[Any, ...]) -> dict[str, Any]:
    """torch.export wants dynamic shapes by the names of parameters, those of a starred one together."""
    named: dict[str, Any] = {}
    for position, parameter in enumerate(inspect.signature(step.forward).parameters.values()):
        starred = parameter.kind is inspect.Parameter.VAR_POSITIONAL
        named[parameter.name] = shapes[position:] if starred else shapes[position]
    return named


def _example(dimension: int | Axis, sizes: Mapping[str, int] = _EXAMPLES) -> int:
    if isinstance(dimension, int):
        return dimension
    # 0 and 1 are special to torch.export.
    return min(sizes.get(dimension.name, 16), dimension.high)


def _program(name: str, exported: ExportedProgram, call: Call, weights: Callable[[nn.Module], WeightStore]) -> Program:
    model, inputs = call.step.model, call.inputs
    assert isinstance(model, nn.Module)
    store = _bind(exported, model, weights(model))
    ports = tuple(Port(i.name, i.dtype, tuple(d if isinstance(d, int) else d.name for d in i.shape)) for i in inputs)
    for node in exported.graph.nodes:
        node.meta["planish_module"] = module_path(node).removeprefix("model").removeprefix(".")
    symbols = _symbols(exported, ports)
    returned = exported.graph.output_node().args[0]
    if not symbols:  # the sizes of the example, then
        ports = tuple(replace(p, shape=tuple(n.meta["val"].shape)) for n, p in _given(exported, ports))
    outputs = tuple(
        Port(o, n.meta["val"].dtype, tuple(_dimension(d, symbols) for d in n.meta["val"].shape))
        for o, n in zip(call.outputs, returned, strict=False)
    )
    axes = {d.name: (d.low, d.high) for i in inputs for d in i.shape if isinstance(d, Axis)}
    return Program(name, exported, store, ports, outputs, axes=axes if symbols else {}, states=call.states)


def _dimension(size: Any, symbols: Mapping[str, str]) -> int | str:
    """A number, or an expression in the names of axes ("past + sequence")."""
    return size if isinstance(size, int) else re.sub(r"\w+", lambda m: symbols.get(m[0], m[0]), str(size))


def _bind(exported: ExportedProgram, model: nn.Module, store: WeightStore) -> WeightStore:
    """Give every parameter, buffer and constant one kind (persistent buffer), the checkpoint's name, and a value."""
    state = {**exported._state_dict, **exported._constants}
    bound: dict[str, Any] = {}
    for spec in exported.graph_signature.input_specs:
        if spec.target is None:
            continue
        name = spec.target.removeprefix("model.")
        if name not in store:
            store = store.with_tensor(name, _constant(state.get(spec.target), name, model))
        bound[name] = next(n.meta["val"] for n in exported.graph.nodes if n.name == spec.arg.name)
        spec.kind, spec.target, spec.persistent = InputKind.BUFFER, name, True
    exported._state_dict, exported._constants = bound, {}
    return store


def _given(exported: ExportedProgram, ports: Sequence[Port]) -> list[tuple[fx.Node, Port]]:
    placeholders = [n for n in exported.graph.nodes if n.op == "placeholder"][-len(ports) :]
    return list(zip(placeholders, ports, strict=True))


def _symbols(exported: ExportedProgram, ports: Sequence[Port]) -> dict[str, str]:
    return {
        str(size): axis
        for node, port in _given(exported, ports)
        for size, axis in zip(node.meta["val"].shape, port.shape, strict=True)
        if isinstance(axis, str) and not isinstance(size, int)
    }


def _constant(value: Any, name: str, model: nn.Module) -> Tensor:
    for found in (value, dict(model.named_buffers()).get(name)):
        if isinstance(found, Tensor) and not isinstance(found, FakeTensor) and not found.is_meta:
            return found.detach().clone()
    raise PlanishError(
        f"constant {name!r} has no value: it was made while tracing and is in no checkpoint",
        type(model).__name__,
        "report the model class; a constant whose value is lost must not be guessed",
    )
