"""Attention as the one operator that Core AI has a composite for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from planish_passes.infra import PassResult, Refusal
from planish_passes.program import Program, finish, op_name
from planish_targets.executorch.edit import caller, swap

_ATEN = torch.ops.aten
# Large enough to absorb any score (score + fill == fill for |score| < 2**75), and far from overflow in float32.
_FILL = -(2.0**100)


@dataclass(frozen=True)
class KernelAttention:
    """`aten.scaled_dot_product_attention` in the place of `planish.attention`, with a mask that is added.

    Added is 0 where a position may be attended to and a large negative finite number elsewhere; behind the softmax that
    is what the mask itself gives, also in rows that attend to nothing. Layers with one mask share one sum.

    Refused: what the composite has not, a softcap, sinks, and values of another width than keys.
    """

    def run(self, program: Program) -> PassResult:
        """See the class."""
        added: dict[tuple[object, object], fx.Node | None] = {}
        changed, refused = 0, []
        for node in [n for n in program.graph.nodes if n.op == "call_function" and op_name(n) == "planish.attention"]:
            q, k, v, mask, bias, sinks, scale, softcap = node.args
            reason = _unfit(q, v, sinks, softcap)  # type: ignore[arg-type]
            if reason:
                refused.append(Refusal.of(node, f"the composite has no {reason}"))
                continue
            key = (mask, bias)
            if key not in added:
                added[key] = _added(program.graph, node, mask, bias)
            call = caller(program.graph, node)
            groups = q.meta["val"].shape[1] != k.meta["val"].shape[1]  # type: ignore[union-attr]
            out = call(
                _ATEN.scaled_dot_product_attention.default,
                *(q, k, v, added[key], 0.0, False),
                scale=scale,
                enable_gqa=groups,
            )
            swap(program.graph, node, call(_ATEN.clone.default, call(_ATEN.transpose.int, out, 1, 2)))
            changed += 1
        return PassResult(finish(program), changed, tuple(refused))


def _unfit(q: fx.Node, v: fx.Node, sinks: object, softcap: object) -> str:
    if q.meta["val"].shape[-1] != v.meta["val"].shape[-1]:
        return "values of another width than keys"
    return "softcap" if softcap else "sinks" if sinks is not None else ""


def _added(graph: fx.Graph, node: fx.Node, mask: object, bias: object) -> fx.Node | None:
    """What is added to the scores, made just before the first attention that needs it."""
    if mask is None:
        return bias  # type: ignore[return-value]
    call = caller(graph, node)
    if bias is not None:
        return call(_ATEN.where.ScalarOther, mask, bias, _FILL)
    return call(_ATEN.where.Scalar, mask, 0.0, _FILL)
