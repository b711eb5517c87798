"""Which attentions over a cache executorch's own kernel computes, and the form of the others."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx

from planish_passes.infra import PassResult, Refusal
from planish_passes.program import Program, finish, op_name
from planish_targets.executorch.edit import caller, swap


@dataclass(frozen=True)
class ExpandAttention:
    """`planish.resident_attention` that `llama::custom_sdpa` does not compute, as cache writes, mask and attention.

    The kernel has neither bias, sinks, softcap, windows nor chunks, and keys as wide as values.
    """

    def run(self, program: Program) -> PassResult:
        """See the class."""
        changed, refused = 0, []
        for node in [n for n in program.graph.nodes if n.op == "call_function"]:
            if op_name(node) != "planish.resident_attention":
                continue
            reason = _unfit(node)
            if reason is not None:
                refused.append(Refusal.of(node, reason))
                _expand(program, node)
                changed += 1
        return PassResult(finish(program), changed, tuple(refused))


def _unfit(node: fx.Node) -> str | None:
    _, k, v, cache, _, _, bias, sinks, _, softcap, window, chunk = node.args
    assert isinstance(k, fx.Node)
    assert isinstance(v, fx.Node)
    assert isinstance(cache, fx.Node)
    context = int(cache.meta["val"].shape[2])
    has = {
        "a bias": bias is not None,
        "sinks": sinks is not None,
        "a softcap": bool(softcap),
        f"a window of {window}": 0 < window < context,  # type: ignore[operator]
        f"chunks of {chunk}": 0 < chunk < context,  # type: ignore[operator]
        "keys and values of different width": k.meta["val"].shape[3] != v.meta["val"].shape[3],
    }
    found = [what for what, there in has.items() if there]
    return f"executorch's attention kernel has no {', no '.join(found)}" if found else None


def _expand(program: Program, node: fx.Node) -> None:
    q, k, v, cache_k, cache_v, slots, bias, sinks, scale, softcap, window, chunk = node.args
    assert isinstance(cache_k, fx.Node)
    call, ops = caller(program.graph, node), torch.ops.planish
    keys = call(ops.cache_write.default, cache_k, k, slots)
    values = call(ops.cache_write.default, cache_v, v, slots)
    context = int(cache_k.meta["val"].shape[2])
    mask = call(ops.causal_mask.default, slots, context, window, chunk)
    out = call(ops.attention.default, q, keys, values, mask, bias, sinks, scale, softcap)
    for part in list(node.users):
        assert part.target is operator.getitem
        swap(program.graph, part, (out, keys, values)[part.args[1]])  # type: ignore[index]
    program.graph.erase_node(node)
