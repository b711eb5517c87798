"""What the activation-range audit means for fp16: which values must stay fp32, and which norms would overflow."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from planish_passes.program import Program, module_path, op_name
from planish_passes.ranges import Range, range_of
from planish_targets.coreml.sdk import HALF_MAX

HEADROOM = 4.0  # the audit has seen one text
LIMIT = HALF_MAX / HEADROOM


def large_values(program: Program) -> dict[str, Range]:
    """Nodes whose values were seen above `LIMIT`, with what was seen; empty for programs without annotations."""
    found = {n.name: range_of(n) for n in program.graph.nodes if n.op == "call_function"}
    return {name: seen for name, seen in found.items() if seen is not None and seen.peak > LIMIT}


def indices(program: Program) -> frozenset[str]:
    """Nodes of floating values that are cut to integers in the end, such as T5's buckets of distances.

    In fp16 they come out on the wrong side of a whole number.
    """
    cuts = [n for n in program.graph.nodes if n.op == "call_function" and op_name(n) in ("aten._to_copy", "aten.to")]
    pending = [source for n in cuts if not _floating(n) for source in n.all_input_nodes]
    found: set[str] = set()
    while pending:
        node = pending.pop()
        if node.name not in found and node.op == "call_function" and _floating(node):
            found.add(node.name)
            pending += node.all_input_nodes
    return frozenset(found)


def _floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def audited(program: Program, large: Mapping[str, Range]) -> tuple[str, ...]:
    """What the audit changed, in sentences; nothing for programs without annotations."""
    said = []
    if large:
        peaks: dict[str, float] = {}
        for node in program.graph.nodes:
            if node.name in large:
                module = module_path(node) or node.name
                peaks[module] = max(peaks.get(module, 0.0), large[node.name].peak)
        said.append(f"fp32 where values passed {LIMIT:.0f}: {_listed(peaks)}")
    norms = {}
    for node in program.graph.nodes:
        seen = range_of(node.args[0]) if node.op == "call_function" and op_name(node) == "planish.rms_norm" else None
        if seen is not None and seen.mean_square > HALF_MAX:
            norms[module_path(node) or node.name] = seen.mean_square
    if norms:
        said.append(f"norms that fp16 would overflow, computed in fp32 (mean of x^2): {_listed(norms)}")
    return tuple(said)


def _listed(found: Mapping[str, float]) -> str:
    return ", ".join(f"{name} ({number:.3g})" for name, number in found.items())
