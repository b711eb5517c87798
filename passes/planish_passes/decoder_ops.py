"""Composite operators of decoders: cache, causal mask, rotary positions, root-mean-square norms, gated products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from planish_passes.ops import attention, composite


def _append_fake(past: Tensor, new: Tensor) -> Tensor:
    return new.new_empty((*new.shape[:-2], past.shape[-2] + new.shape[-2], new.shape[-1]))


@composite("kv_append(Tensor past, Tensor new) -> Tensor", _append_fake)
def kv_append(past: Tensor, new: Tensor) -> Tensor:
    """Keys or values of all tokens so far.

    Args:
        past: [B, H, P, D].
        new: [B, H, Q, D].

    Returns:
        [B, H, P + Q, D].
    """
    return torch.cat([past, new], dim=-2)


def _mask_fake(slots: Tensor, length: int, *_: Any) -> Tensor:
    return slots.new_empty((slots.shape[0], 1, slots.shape[1], length), dtype=torch.bool)


@composite("causal_mask(Tensor slots, SymInt length, int window, int chunk) -> Tensor", _mask_fake)
def causal_mask(slots: Tensor, length: int, window: int, chunk: int) -> Tensor:
    """Which cached tokens each new token may attend to.

    Args:
        slots: int64 [B, Q], the place of each new token in the cache.
        length: cached tokens, the new ones included.
        window: how many of the last tokens are seen (the token itself included); 0 = all.
        chunk: tokens see their own chunk of this many only; 0 = off.

    Returns:
        bool [B, 1, Q, length], True = attend.
    """
    column, row = torch.arange(length, device=slots.device), slots[:, None, :, None]
    keep = column <= row
    if window > 0:
        keep = keep & (column > row - window)
    if chunk > 0:
        keep = keep & (column // chunk == row // chunk)
    return keep


def _cached_fake(q: Tensor, k: Tensor, v: Tensor, past_k: Tensor, past_v: Tensor, *_: Any) -> tuple[Tensor, ...]:
    out = q.new_empty((q.shape[0], q.shape[2], q.shape[1], v.shape[3]))
    return out, _append_fake(past_k, k), _append_fake(past_v, v)


@composite(
    "cached_attention(Tensor q, Tensor k, Tensor v, Tensor past_k, Tensor past_v, Tensor slots, Tensor? bias,"
    " Tensor? sinks, float scale, float softcap, int window, int chunk) -> (Tensor, Tensor, Tensor)",
    _cached_fake,
)
def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past_k: Tensor,
    past_v: Tensor,
    slots: Tensor,
    bias: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    softcap: float,
    window: int,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal attention of new tokens over a cache that grows by them.

    Args:
        q: [B, H, Q, D].
        k, v: [B, H_kv, Q, D], of the new tokens.
        past_k, past_v: [B, H_kv, P, D].
        slots, window, chunk: see `causal_mask`.
        bias, sinks, scale, softcap: see `ops.attention`.

    Returns:
        Result [B, Q, H, D_v]; keys and values of all tokens, [B, H_kv, P + Q, D].
    """
    keys, values = kv_append(past_k, k), kv_append(past_v, v)
    mask = causal_mask(slots, keys.shape[-2], window, chunk)
    return attention(q, keys, values, mask, bias, sinks, scale, softcap), keys, values


@composite(
    "cache_write(Tensor cache, Tensor new, Tensor slots) -> Tensor", lambda cache, *_: cache.new_empty(cache.shape)
)
def cache_write(cache: Tensor, new: Tensor, slots: Tensor) -> Tensor:
    """A cache of a fixed size with new keys or values at their slots.

    Args:
        cache: [1, H, C, D].
        new: [1, H, Q, D].
        slots: int64 [1, Q], below C, one after the other.

    Returns:
        [1, H, C, D].
    """
    return cache.index_copy(2, slots[0], new)


def _resident_fake(q: Tensor, k: Tensor, v: Tensor, cache_k: Tensor, cache_v: Tensor, *_: Any) -> tuple[Tensor, ...]:
    out = q.new_empty((q.shape[0], q.shape[2], q.shape[1], v.shape[3]))
    return out, cache_k.new_empty(cache_k.shape), cache_v.new_empty(cache_v.shape)


@composite(
    "resident_attention(Tensor q, Tensor k, Tensor v, Tensor cache_k, Tensor cache_v, Tensor slots, Tensor? bias,"
    " Tensor? sinks, float scale, float softcap, int window, int chunk) -> (Tensor, Tensor, Tensor)",
    _resident_fake,
)
def resident_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache_k: Tensor,
    cache_v: Tensor,
    slots: Tensor,
    bias: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    softcap: float,
    window: int,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal attention of new tokens over a cache of a fixed size that they are written into.

    Args:
        q: [1, H, Q, D].
        k, v: [1, H_kv, Q, D], of the new tokens.
        cache_k, cache_v: [1, H_kv, C, D].
        slots: see `cache_write`.
        window, chunk: see `causal_mask`.
        bias, sinks, scale, softcap: see `ops.attention`.

    Returns:
        Result [1, Q, H, D_v]; the caches with the new tokens, [1, H_kv, C, D].
    """
    ops = torch.ops.planish  # operators, so that a target that keeps these finds them
    keys, values = ops.cache_write(cache_k, k, slots), ops.cache_write(cache_v, v, slots)
    mask = ops.causal_mask(slots, cache_k.shape[2], window, chunk)
    return ops.attention(q, keys, values, mask, bias, sinks, scale, softcap), keys, values


@composite(
    "rope(Tensor x, Tensor positions, Tensor cos, Tensor sin, bool interleaved) -> Tensor",
    lambda x, *_: x.new_empty(x.shape),
)
def rope(x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864) of the first R of D channels.

    Args:
        x: [B, H, Q, D].
        positions: int64 [B, Q].
        cos, sin: tables [L, R / 2] over positions.
        interleaved: pairs are neighbours (0, 1), (2, 3), ...; else halves (0, R / 2), (1, R / 2 + 1), ...

    Returns:
        [B, H, Q, D].
    """
    c = torch.nn.functional.embedding(positions, cos).unsqueeze(1)
    s = torch.nn.functional.embedding(positions, sin).unsqueeze(1)
    half, width = cos.shape[1], x.shape[-1]
    if interleaved:
        pairs = x[..., : 2 * half].unflatten(-1, (half, 2))
        a, b = pairs[..., 0], pairs[..., 1]
        turned = [torch.stack([a * c - b * s, b * c + a * s], dim=-1).flatten(-2)]
    else:
        a, b = x[..., :half], x[..., half : 2 * half]
        turned = [a * c - b * s, b * c + a * s]
    return torch.cat([*turned, x[..., 2 * half :]] if width > 2 * half else turned, dim=-1)


@composite("rms_norm(Tensor x, Tensor? weight, float eps) -> Tensor", lambda x, *_: x.new_empty(x.shape))
def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang and Sennrich 2019, arXiv:1910.07467)."""
    y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return y if weight is None else weight * y


ACTIVATIONS = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.nn.functional.relu,
    "sigmoid": torch.sigmoid,
}


@composite("gated(Tensor gate, Tensor up, str activation) -> Tensor", lambda gate, *_: gate.new_empty(gate.shape))
def gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """activation(gate) * up, the middle of a gated MLP (Shazeer 2020, arXiv:2002.05202); all [..., F]."""
    return ACTIVATIONS[activation](gate) * up
