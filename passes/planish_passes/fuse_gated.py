"""Find the middle of gated MLPs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

import planish_passes.decoder_ops  # noqa: F401  (registers the operator)
from planish_passes.infra import PassResult
from planish_passes.match import is_op, other, shape_of, sole
from planish_passes.program import Program, finish

_PLAIN = {"aten.silu": "silu", "aten.relu": "relu"}


@dataclass(frozen=True)
class FuseGated:
    """`planish.gated` in the place of activation(gate) * up (arXiv:2002.05202), both of one shape.

    Activations: silu, gelu (both forms), relu.
    """

    def run(self, program: Program) -> PassResult:
        """See the class."""
        fused = 0
        for node in list(program.graph.nodes):
            name = _activation(node)
            product: Any = sole(node) if name else None
            if not is_op(product, "aten.mul"):
                continue
            up, gate = other(product, node), node.args[0]
            if not isinstance(up, fx.Node) or up is node or up.op == "placeholder" or not _alike(up, node):
                continue
            with program.graph.inserting_before(product):
                gated = program.graph.call_function(torch.ops.planish.gated.default, (gate, up, name))
            gated.meta = dict(product.meta)
            product.replace_all_uses_with(gated)
            fused += 1
        return PassResult(finish(program), fused)


def _activation(node: Any) -> str | None:
    if is_op(node, "aten.gelu"):
        return "gelu_tanh" if node.kwargs.get("approximate") == "tanh" else "gelu"
    return _PLAIN.get(next((n for n in _PLAIN if is_op(node, n)), ""))


def _alike(a: fx.Node, b: fx.Node) -> bool:
    return [str(s) for s in shape_of(a)] == [str(s) for s in shape_of(b)]
