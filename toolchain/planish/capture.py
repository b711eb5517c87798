"""Model class to program: one trace on the meta device, no weight in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from planish import hooks
from planish.meta import build_on_meta, to_cpu
from planish.tasks.base import Axis, Input, Task
from planish_passes.errors import PlanishError
from planish_passes.program import Port, Program, module_path, op_name
from planish_passes.weights import WeightStore

_COUNTED: dict[type[nn.Module], str] = {
    nn.Linear: "aten.linear",
    nn.LayerNorm: "aten.layer_norm",
    nn.Embedding: "aten.embedding",
}


@dataclass(frozen=True)
class Captured:
    """A program and what capture had to decide on the way."""

    program: Program
    notes: tuple[str, ...]


class _Step(nn.Module):
    """The traced call: named inputs in, the task's outputs out."""

    def __init__(self, model: nn.Module, names: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names, self.outputs = model, tuple(names), tuple(outputs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        result = self.model(**dict(zip(self.names, tensors, strict=True)), return_dict=True)
        return tuple(result[o] for o in self.outputs if result.get(o) is not None)


def capture(
    model_class: Any, config: Any, task: Task, weights: Callable[[nn.Module], WeightStore], *, name: str = "encode"
) -> Captured:
    """Trace the model once, with symbolic batch and sequence.

    Args:
        model_class: an Auto class or model class of transformers.
        config: its config.
        task: decides inputs and outputs.
        weights: maps the meta model to its weights (`Source.weights`).
        name: name of the entry point.

    Raises:
        PlanishError: the model cannot be traced; names the cause.
    """
    notes: list[str] = []
    for attention in (hooks.IMPLEMENTATION, "eager"):
        try:
            model = build_on_meta(model_class, config, attention)
        except (KeyError, ValueError) as problem:
            if attention == "eager":
                raise
            notes.append(f"attention is not hooked ({problem}); captured with plain attention")
            continue
        inputs = task.inputs(config, model)
        calls: list[tuple[str, str]] = []
        try:
            with _count_calls(model, calls):
                exported = _export(model, inputs, task, notes)
        except hooks.Unhooked as problem:
            notes.append(f"{problem}; captured with plain attention")
            continue
        exported = to_cpu(exported)
        found = Counter(op_name(n) for n in exported.graph.nodes if n.op == "call_function")["planish.attention"]
        predicted = int(getattr(config, "num_hidden_layers", 0) or 0)
        softmaxes = Counter(op_name(n) for n in exported.graph.nodes if n.op == "call_function")["aten.softmax"]
        if attention == hooks.IMPLEMENTATION and predicted and found != predicted and softmaxes:
            notes.append(f"attention hook saw {found} of {predicted} layers; captured with plain attention")
            continue
        break
    program = _program(name, exported, model, weights, inputs, task)
    return Captured(_with_expectations(program, calls, found), tuple(notes))


@contextmanager
def _count_calls(model: nn.Module, calls: list[tuple[str, str]]) -> Iterator[None]:
    handles = []
    for path, module in model.named_modules():
        op = next((o for kind, o in _COUNTED.items() if isinstance(module, kind)), None)
        if op is not None:
            handles.append(module.register_forward_pre_hook(_Recorder(path, op, calls)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class _Recorder:
    path: str
    op: str
    calls: list[tuple[str, str]]

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.calls.append((self.path, self.op))


def _export(model: nn.Module, inputs: Sequence[Input], task: Task, notes: list[str]) -> ExportedProgram:
    from transformers.exporters import exporter_dynamo  # noqa: F401  (registers the patches)
    from transformers.exporters.utils import apply_patches

    step = _Step(model, [i.name for i in inputs], task.outputs).eval()
    tensors = tuple(torch.zeros([_example(d) for d in i.shape], dtype=i.dtype, device="meta") for i in inputs)
    axes = {d.name: Dim(d.name, min=d.low, max=d.high) for i in inputs for d in i.shape if isinstance(d, Axis)}
    dynamic = tuple({k: axes[d.name] for k, d in enumerate(i.shape) if isinstance(d, Axis)} for i in inputs)
    first: Exception | None = None
    problem: Exception | None = None
    for shapes in (dynamic, None):
        try:
            with torch.no_grad(), apply_patches("dynamo"):
                exported = torch.export.export(
                    step,
                    tensors,
                    dynamic_shapes=None if shapes is None else {"tensors": shapes},
                    strict=False,
                    prefer_deferred_runtime_asserts_over_guards=True,
                )
        except hooks.Unhooked:
            raise
        except Exception as caught:  # torch.export raises many unrelated types; the cause is kept and named
            first, problem = problem or caught, caught
            continue
        if shapes is None:
            notes.append(f"shapes are fixed: dynamic ones were refused by torch.export ({_first_line(first)})")
        return exported
    raise PlanishError(
        f"{type(model).__name__} cannot be traced: {_first_line(problem)}",
        "torch.export",
        "try a newer transformers; if its own exporter fails too, the architecture is not traceable",
    ) from problem


def _first_line(problem: BaseException | None) -> str:
    text = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {text[0] if text else ''}"


def _example(dimension: int | Axis) -> int:
    if isinstance(dimension, int):
        return dimension
    # 0 and 1 are special to torch.export; another value for each axis keeps their symbols apart.
    return min(3 if dimension.name == "batch" else 16, dimension.high)


def _program(
    name: str,
    exported: ExportedProgram,
    model: nn.Module,
    weights: Callable[[nn.Module], WeightStore],
    inputs: Sequence[Input],
    task: Task,
) -> Program:
    store = _bind(exported, model, weights(model))
    ports = tuple(Port(i.name, i.dtype, tuple(d if isinstance(d, int) else d.name for d in i.shape)) for i in inputs)
    for node in exported.graph.nodes:
        node.meta["planish_module"] = module_path(node).removeprefix("model").removeprefix(".")
    symbols = _symbols(exported, ports)
    returned = exported.graph.output_node().args[0]
    outputs = tuple(
        Port(
            o,
            n.meta["val"].dtype,
            tuple(symbols.get(str(d), str(d)) if not isinstance(d, int) else d for d in n.meta["val"].shape),
        )
        for o, n in zip(task.outputs, returned, strict=False)
    )
    axes = {d.name: (d.low, d.high) for i in inputs for d in i.shape if isinstance(d, Axis)}
    return Program(name, exported, store, ports, outputs, axes=axes if symbols else {})


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


def _symbols(exported: ExportedProgram, ports: Sequence[Port]) -> dict[str, str]:
    placeholders = [n for n in exported.graph.nodes if n.op == "placeholder"][-len(ports) :]
    return {
        str(size): axis
        for node, port in zip(placeholders, ports, strict=True)
        for size, axis in zip(node.meta["val"].shape, port.shape, strict=True)
        if isinstance(axis, str) and not isinstance(size, int)
    }


def _constant(value: Any, name: str, model: nn.Module) -> Tensor:
    if isinstance(value, Tensor) and not hasattr(value, "fake_mode") and value.device.type != "meta":
        return value.detach().clone()
    value = dict(model.named_buffers()).get(name)
    if value is not None and value.device.type != "meta":
        return value.detach().clone()
    raise PlanishError(
        f"constant {name!r} has no value: it was made while tracing and is in no checkpoint",
        type(model).__name__,
        "report the model class; a constant whose value is lost must not be guessed",
    )


def _with_expectations(program: Program, calls: list[tuple[str, str]], attention: int) -> Program:
    from dataclasses import replace

    from planish_passes.program import finish

    program = finish(program)
    live = {module_path(n) for n in program.graph.nodes if n.op == "call_function"}
    expects = Counter(op for path, op in calls if path in live)
    if attention:
        expects["planish.attention"] = attention
    return replace(program, expects=dict(expects))
