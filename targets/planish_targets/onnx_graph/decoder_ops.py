"""Operators of com.microsoft that decoders are made of, with bodies that compute what the kernels compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from planish_passes.decoder_ops import cached_attention, gated, rms_norm, rope
from planish_passes.ops import composite


def _lengths_fake(slots: Tensor) -> tuple[Tensor, Tensor]:
    return slots.new_empty((slots.shape[0],), dtype=torch.int32), slots.new_empty((1,), dtype=torch.int32)


@composite("cache_lengths(Tensor slots) -> (Tensor, Tensor)", _lengths_fake)
def cache_lengths(slots: Tensor) -> tuple[Tensor, Tensor]:
    """slots int64 [B, Q] -> slot of the last token int32 [B]; length of the cache after this call, int32 [1]."""
    last = slots.amax(dim=1).to(torch.int32)  # not the last one: rows of a batch may be padded behind
    return last, (last.amax(dim=0, keepdim=True) + 1).to(torch.int32)


def _gqa_fake(q: Tensor, k: Tensor, v: Tensor, past_k: Tensor, past_v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    heads, length = rest[-3], q.shape[1] + past_k.shape[2]
    out = q.new_empty((q.shape[0], q.shape[1], heads * past_v.shape[3]))
    keys, values = (p.new_empty((p.shape[0], p.shape[1], length, p.shape[3])) for p in (past_k, past_v))
    return out, keys, values


@composite(
    "group_query_attention(Tensor q, Tensor? k, Tensor? v, Tensor past_k, Tensor past_v, Tensor last, Tensor total,"
    " Tensor? cos, Tensor? sin, float scale, float softcap, int window, int heads, int kv_heads, bool interleaved)"
    " -> (Tensor, Tensor, Tensor)",
    _gqa_fake,
)
def group_query_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    past_k: Tensor,
    past_v: Tensor,
    last: Tensor,
    total: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    scale: float,
    softcap: float,
    window: int,
    heads: int,
    kv_heads: int,
    interleaved: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """com.microsoft::GroupQueryAttention.

    Args:
        q: [B, Q, heads * D]; with k and v None [B, Q, (heads + 2 * kv_heads) * D]: queries, keys, values.
        k, v: [B, Q, kv_heads * D] or None.
        past_k, past_v: [B, kv_heads, P, D].
        last: int32 [B], slot of the last token.
        total: int32 [1], P + Q.
        cos, sin: [L, R / 2]: queries and keys are rotated inside; None: they come rotated.

    Returns:
        [B, Q, heads * D]; keys and values of all tokens.
    """
    if k is None or v is None:
        width = past_k.shape[3]
        q, k, v = q.split([heads * width, kv_heads * width, kv_heads * width], dim=-1)
    slots = (last.to(torch.int64) + 1 - q.shape[1])[:, None] + torch.arange(q.shape[1], device=q.device)
    split = [t.unflatten(-1, (n, -1)).transpose(1, 2) for t, n in ((q, heads), (k, kv_heads), (v, kv_heads))]
    if cos is not None and sin is not None:
        split[:2] = [rope(t, slots, cos, sin, interleaved) for t in split[:2]]
    out, keys, values = cached_attention(*split, past_k, past_v, slots, None, None, scale, softcap, window, 0)
    return out.flatten(-2), keys, values


@composite(
    "add_rms_norm(Tensor x, Tensor skip, Tensor weight, float eps) -> (Tensor, Tensor)",
    lambda x, *_: (x.new_empty(x.shape), x.new_empty(x.shape)),
)
def add_rms_norm(x: Tensor, skip: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """com.microsoft::SkipSimplifiedLayerNormalization: (rms_norm(x + skip), x + skip)."""
    total = x + skip
    return rms_norm(total, weight, eps), total


@composite(
    "gated_halves(Tensor x, str activation, bool up_first) -> Tensor",
    lambda x, *_: x.new_empty((*x.shape[:-1], x.shape[-1] // 2)),
)
def gated_halves(x: Tensor, activation: str, up_first: bool) -> Tensor:
    """`gated` of the two halves of [..., 2 F]: gate and up, or up and gate."""
    first, second = x.chunk(2, dim=-1)
    return gated(second, first, activation) if up_first else gated(first, second, activation)
