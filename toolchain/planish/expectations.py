"""What a model calls while it is traced, and so must be found in its program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from planish_passes.fuse_linear import products
from planish_passes.fuse_rms_norm import RMS_NORM
from planish_passes.program import Program, finish, module_path, op_name

_COUNTED: dict[type[nn.Module], str] = {
    nn.Linear: "aten.linear",
    Conv1D: "aten.linear",
    nn.LayerNorm: "aten.layer_norm",
    nn.Embedding: "aten.embedding",
}


@contextmanager
def count_calls(model: nn.Module, calls: list[tuple[str, str]]) -> Iterator[None]:
    """Note (module, operator) of every call while the context lasts."""
    handles = []
    for path, module in model.named_modules():
        op = _counted(module)
        if op is not None:
            handles.append(module.register_forward_pre_hook(_Recorder(path, op, calls)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _counted(module: nn.Module) -> str | None:
    if type(module).__name__.lower().endswith("rmsnorm"):
        return RMS_NORM
    # A forward of its own may do something else; what it does is taken as traced.
    known = (op for kind, op in _COUNTED.items() if isinstance(module, kind) and type(module).forward is kind.forward)
    return next(known, None)


@dataclass(frozen=True)
class _Recorder:
    path: str
    op: str
    calls: list[tuple[str, str]]

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.calls.append((self.path, self.op))


def with_expectations(program: Program, calls: list[tuple[str, str]]) -> Program:
    """The program, with how often each operator must be found in it; calls whose result nothing reads do not count."""
    program = finish(program)
    nodes = [n for n in program.graph.nodes if n.op == "call_function"]
    live, counted = {module_path(n) for n in nodes}, {path for path, _ in calls}
    expects = Counter(op for path, op in calls if path in live)
    # Layers without a module of their own, such as routers, are taken as traced.
    operators = set(_COUNTED.values())
    expects += Counter(op_name(n) for n in nodes if op_name(n) in operators and module_path(n) not in counted)
    expects["aten.linear"] += sum(module_path(p.node) not in counted for p in products(program))
    expects["planish.attention"] = program.count()["planish.attention"]
    return replace(program, expects=dict(+expects))
