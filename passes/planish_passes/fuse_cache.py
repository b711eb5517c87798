"""Join cache, causal mask and attention of a layer into one operator."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

import planish_passes.decoder_ops  # noqa: F401  (registers the operators)
from planish_passes.infra import PassResult, Refusal
from planish_passes.match import is_op
from planish_passes.program import Program, finish


@dataclass(frozen=True)
class FuseCache:
    """`planish.cached_attention` in the place of kv_append twice, causal_mask and attention.

    Only on an exact match: keys and values are appended ones that nothing else reads but the outputs, and the mask is
    the causal one. What does not match (compressed caches, cross attention, masks of another kind) stays in parts,
    which compute the same.
    """

    def run(self, program: Program) -> PassResult:
        """See the class."""
        fused, refused = 0, []
        for node in list(program.graph.nodes):
            if not is_op(node, "planish.attention"):
                continue
            reason = _unfit(node)
            if reason is not None:
                if program.states:
                    refused.append(Refusal.of(node, f"the cache stays apart: {reason}"))
                continue
            _join(program.graph, node)
            fused += 1
        return PassResult(finish(program), fused, tuple(refused))


def _unfit(node: fx.Node) -> str | None:
    keys, values, mask = node.args[1:4]
    for name, tensor in (("keys", keys), ("values", values)):
        if not is_op(tensor, "planish.kv_append"):
            return f"{name} are not a cache with new ones appended"
        assert isinstance(tensor, fx.Node)
        if any(u is not node and u.op != "output" and not is_op(u, "aten.sym_size") for u in tensor.users):
            return f"{name} are also used elsewhere"
    return None if is_op(mask, "planish.causal_mask") else "the mask is not the causal one"


def _join(graph: fx.Graph, node: fx.Node) -> None:
    q, keys, values, mask, bias, sinks, scale, softcap = node.args
    assert isinstance(keys, fx.Node)
    assert isinstance(values, fx.Node)
    assert isinstance(mask, fx.Node)
    slots, _, window, chunk = mask.args
    (past_k, new_k), (past_v, new_v) = keys.args, values.args
    with graph.inserting_before(node):
        joined = graph.call_function(
            torch.ops.planish.cached_attention.default,
            (q, new_k, new_v, past_k, past_v, slots, bias, sinks, scale, softcap, window, chunk),
        )
        joined.meta = {**node.meta, "val": tuple(n.meta["val"] for n in (node, keys, values))}
        parts: list[Any] = [graph.call_function(operator.getitem, (joined, i)) for i in range(3)]
    for part, old in zip(parts, (node, keys, values), strict=True):
        part.meta = dict(old.meta)
        old.replace_all_uses_with(part, delete_user_cb=lambda user: user is not joined)
    graph.erase_node(node)
