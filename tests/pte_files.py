"""What a .pte says, without the numbers by which debuggers name operations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planish_targets.executorch.pte import open_pte, xnnpack_graphs


def said(path: Path) -> tuple[Any, ...]:
    """The plan, each delegate's graph, and all constants, in their order."""
    file = open_pte(path)
    graphs = [_without_handles(graph) for graph in xnnpack_graphs(file).values()]
    keys = sorted({c["named_key"] for g in graphs for c in g["constant_data"] if c["named_key"]})
    tables = [bytes(file.constant(i).numpy()) for i in range(len(file.plan.values)) if file.is_constant(i)]
    return file.plan, graphs, keys, [bytes(file.named(k)) for k in keys], tables


def _without_handles(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_handles(v) for k, v in value.items() if k != "debug_handle"}
    return [_without_handles(v) for v in value] if isinstance(value, list) else value
