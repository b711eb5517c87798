"""Compute what only the next token needs, at the last position only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from planish_passes.infra import PassResult
from planish_passes.match import is_op
from planish_passes.program import Program, finish

_BY_ROWS = (
    *(f"aten.{n}" for n in ("linear", "add", "sub", "mul", "div", "neg", "tanh", "sigmoid", "silu", "gelu", "relu")),
    *("aten.to", "aten.layer_norm", "planish.linear_q", "planish.linear_minima", "planish.rms_norm", "planish.gated"),
)
_END = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class LastToken:
    """Logits [B, Q, V] become [B, 1, V]: what they alone need is computed for the last of the new tokens.

    Operators that treat each token by itself and that nothing else reads work on one row: the head, the last norm,
    the last layer's MLP. A prompt's other rows end at the last attention.

    Args:
        output: name of the output.
    """

    output: str = "logits"

    def run(self, program: Program) -> PassResult:
        """See the class."""
        position = next((i for i, p in enumerate(program.outputs) if p.name == self.output), None)
        returned: Any = program.graph.output_node().args[0]
        if position is None or not program.states:
            return PassResult(program, 0)
        logits: fx.Node = returned[position]
        size = str(logits.meta["val"].shape[1])
        alone = _alone(program.graph, logits, size)
        cuts: dict[fx.Node, fx.Node] = {}
        for node in [n for n in program.graph.nodes if n in alone]:
            for source in node.all_input_nodes:
                if source not in alone and _has_rows(source, size):
                    cuts.setdefault(source, _cut(program.graph, source))
            node.args = fx.node.map_arg(node.args, lambda n: cuts.get(n, n))
            node.meta["val"] = _one_row(node.meta["val"])
        if not alone:
            returned = list(returned)
            returned[position] = _cut(program.graph, logits)
            program.graph.output_node().args = (tuple(returned),)
        port = program.outputs[position]
        outputs = list(program.outputs)
        outputs[position] = replace(port, shape=(port.shape[0], 1, *port.shape[2:]))
        return PassResult(finish(replace(program, outputs=tuple(outputs))), len(alone) + len(cuts))


def _alone(graph: fx.Graph, logits: fx.Node, size: str) -> set[fx.Node]:
    """Operators by rows that only lead to the logits."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        users = set(node.users) - found
        leads = not users or (node is logits and all(u.op == "output" for u in users))
        if leads and node.users and is_op(node, *_BY_ROWS) and _has_rows(node, size) and not node.kwargs.get("out"):
            found.add(node)
    return found


def _has_rows(node: fx.Node, size: str) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dim() == 3 and str(value.shape[1]) == size


def _cut(graph: fx.Graph, source: fx.Node) -> fx.Node:
    with graph.inserting_after(source):
        cut = graph.call_function(torch.ops.aten.slice.Tensor, (source, 1, -1, _END))
    cut.meta = {**source.meta, "val": _one_row(source.meta["val"])}
    return cut


def _one_row(value: torch.Tensor) -> torch.Tensor:
    return value.new_empty((value.shape[0], 1, *value.shape[2:]))
