"""Composite operators. One plain-torch body each: it runs eagerly, is the decomposition, and is the reference.

A target that keeps an operator encodes it; for every other target `expand` puts the body in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

BLOCK = 1 << 18  # elements that are floating point at a time, when a program runs with real weights: what a core caches
PAIR_RANGE, PAIR_LEAST = 126 * 255, 1e-37  # of `int8_token_pair`: steps to the bound; what keeps zeros finite
GELU_LOW = 0.1701  # GELU and its tanh form never fall below -0.17005

_library = torch.library.Library("planish", "DEF")
BODIES: dict[torch._ops.OpOverload, Callable[..., Any]] = {}


def composite(schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register an operator: schema, shape function, and (decorated) its body."""

    # Explicit fakes: tracing a body to find its shapes would leave stride guards in the graph.
    def register(body: Callable[..., Any]) -> Callable[..., Any]:
        name = schema.split("(")[0]
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, body, "CompositeExplicitAutograd")
        torch.library.register_fake(f"planish::{name}", fake, lib=_library)
        BODIES[getattr(torch.ops.planish, name).default] = body
        return body

    return register


def _attention_fake(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return q.new_empty((q.shape[0], q.shape[2], q.shape[1], v.shape[3]))


@composite(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? bias, Tensor? sinks, float scale, float softcap)"
    " -> Tensor",
    _attention_fake,
)
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    softcap: float,
) -> Tensor:
    """Scaled dot-product attention ("Attention Is All You Need", Vaswani et al. 2017) with grouped key/value heads.

    Args:
        q: [B, H, Q, D].
        k: [B, H_kv, K, D]; H is a multiple of H_kv.
        v: [B, H_kv, K, D_v].
        mask: bool, broadcastable to [B, H, Q, K], True = attend; None = attend to everything.
        bias: float, broadcastable to [B, H, Q, K], added to the scaled scores.
        sinks: [H], one extra softmax column per head that attends to nothing.
        scale: factor on q @ k^T.
        softcap: scores = softcap * tanh(scores / softcap); 0 = off.

    Returns:
        [B, Q, H, D_v], contiguous.
    """
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = torch.matmul(q, k.transpose(-1, -2)) * scale
    if softcap > 0:
        scores = torch.tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = torch.where(mask, scores, torch.finfo(scores.dtype).min)
    if sinks is not None:
        column = sinks.view(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        probabilities = torch.softmax(torch.cat([scores, column], dim=-1), dim=-1)[..., :-1]
    else:
        probabilities = torch.softmax(scores, dim=-1)
    return torch.matmul(probabilities, v).transpose(1, 2).contiguous()


def _symmetric(x: Tensor) -> Tensor:
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-10)
    return torch.round(x * (127 / scale)) * (scale * (1 / 127))


def _residual(x: Tensor) -> Tensor:
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-10)
    scaled = x * (127 / scale)
    high = torch.round(scaled)
    low = torch.round((scaled - high) * 254) * (1 / 254)
    return (high + low) * (scale * (1 / 127))


def _after_gelu(x: Tensor) -> Tensor:
    shifted = (x + GELU_LOW).clamp(min=0)
    scale = shifted.amax(dim=-1, keepdim=True).clamp(min=1e-10)
    return torch.round(shifted * (255 / scale)) * (scale * (1 / 255)) - GELU_LOW


def _asymmetric(x: Tensor) -> Tensor:
    low, high = x.amin(dim=-1, keepdim=True).clamp(max=0), x.amax(dim=-1, keepdim=True).clamp(min=0)
    width = high - low
    inverse = torch.where(width == 0, torch.ones_like(width), 255 / width)
    low, high = low * inverse, high * inverse
    zero = torch.where((-128 + low) + (127 + high) > 0, -128 - low, 127 - high).clamp(-128, 127).round()
    return (torch.clamp(torch.round(x * inverse) + zero, -128, 127) - zero) * (1 / inverse)


def _pair(x: Tensor) -> Tensor:
    step = (x / PAIR_RANGE).pow(4).sum(-1, keepdim=True).add(PAIR_LEAST).sqrt().sqrt()
    return torch.floor(x / step + 0.5) * step


def _blocks(x: Tensor, size: int) -> Tensor:
    blocks = x.unflatten(-1, (-1, size))
    scale = blocks.abs().amax(dim=-1, keepdim=True) / 127
    inverse = torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)
    return (torch.round(blocks * inverse) * scale).flatten(-2)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    **{f"int8_block{n}": partial(_blocks, size=n) for n in (16, 32, 64, 128, 256)},
    "int8_token_symmetric": _symmetric,
    "int8_token_residual": _residual,
    "uint8_token_after_gelu": _after_gelu,
    "int8_token_asymmetric": _asymmetric,
    "int8_token_pair": _pair,
}


def quantize_activations(x: Tensor, activations: str) -> Tensor:
    """Round activations as a runtime with int8 kernels does, and return them as floats again ("fake quantisation").

    Args:
        x: [..., K], one scale per token (row).
        activations:
            `int8_token_symmetric`: scale = max|x| / 127, integers in [-127, 127];
            `int8_token_residual`: the same, and what it lost in a second int8 pass (about 15 bits);
            `uint8_token_after_gelu`: for values that a GELU made: [-0.17, max] in 255 steps;
            `int8_token_asymmetric`: the affine scheme of XNNPACK's dynamically quantised kernels, range [-128, 127];
            `int8_token_pair`: one step per token, of which no |x| has more than `PAIR_RANGE`, for the step is
            (sum (x / PAIR_RANGE)^4)^(1/4): what two int8 passes hold, one for 255 steps and one for single ones;
            `int8_block16` ... `int8_block256`: one scale per token and block of that many channels, max / 127, as the
            kernels of 4-bit weights do with their own blocks;
            `none`: x itself.
    """
    return ACTIVATIONS[activations](x)


def dequantize(weight: Tensor, scales: Tensor, zero_points: Tensor | None, dtype: torch.dtype) -> Tensor:
    """int8 [N, K] with scales [N, G] to dtype [N, K]; each scale serves K / G neighbouring columns."""
    rows, columns = weight.shape
    grouped = weight.to(dtype).view(rows, scales.shape[1], columns // scales.shape[1])
    if zero_points is not None:
        grouped = grouped - zero_points.to(dtype).unsqueeze(-1)
    return (grouped * scales.to(dtype).unsqueeze(-1)).view(rows, columns)


def _linear_q_fake(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@composite(
    "linear_q(Tensor x, Tensor weight, Tensor scales, Tensor? zero_points, Tensor? bias, int bits, str activations)"
    " -> Tensor",
    _linear_q_fake,
)
def linear_q(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    bias: Tensor | None,
    bits: int,
    activations: str,
) -> Tensor:
    """x @ dequantize(weight)^T + bias.

    Args:
        x: [..., K].
        weight: int8 [N, K], integers of `bits` bits, one per element.
        scales: [N, G], G divides K.
        zero_points: int8 [N, G] or None (symmetric).
        bias: [N] or None.
        bits: width of the integers (2, 4 or 8).
        activations: see `quantize_activations`.
    """
    rounded, step = quantize_activations(x, activations), max(1, BLOCK // max(int(weight.shape[1]), 1))
    if isinstance(weight, FakeTensor) or weight.shape[0] <= step:
        return torch.nn.functional.linear(rounded, dequantize(weight, scales, zero_points, x.dtype), bias)
    parts = []
    for at in range(0, weight.shape[0], step):
        span = slice(at, at + step)
        zeros = None if zero_points is None else zero_points[span]
        rows = dequantize(weight[span], scales[span], zeros, x.dtype)
        parts.append(torch.nn.functional.linear(rounded, rows, None if bias is None else bias[span]))
    return torch.cat(parts, dim=-1)


def _embedding_q_fake(ids: Tensor, weight: Tensor, scales: Tensor, *_: Any) -> Tensor:
    return scales.new_empty((*ids.shape, weight.shape[1]))


@composite(
    "embedding_q(Tensor ids, Tensor weight, Tensor scales, Tensor? zero_points, int bits) -> Tensor",
    _embedding_q_fake,
)
def embedding_q(ids: Tensor, weight: Tensor, scales: Tensor, zero_points: Tensor | None, bits: int) -> Tensor:
    """Rows of a quantised table: dequantize(weight)[ids].

    Args:
        ids: integers [...].
        weight: int8 [V, D], integers of `bits` bits.
        scales: [V, G], G divides D.
        zero_points: int8 [V, G] or None.
        bits: width of the integers.
    """
    rows = torch.nn.functional.embedding(ids, weight).to(scales.dtype)
    factors = torch.nn.functional.embedding(ids, scales)
    if scales.shape[1] == 1 and zero_points is None:
        return rows * factors
    grouped = rows.view(*ids.shape, scales.shape[1], weight.shape[1] // scales.shape[1])
    if zero_points is not None:
        grouped = grouped - torch.nn.functional.embedding(ids, zero_points).to(scales.dtype).unsqueeze(-1)
    return (grouped * factors.unsqueeze(-1)).view(*ids.shape, weight.shape[1])


@composite("linear_minima(Tensor x, Tensor minima) -> Tensor", lambda x, m: x.new_empty((*x.shape[:-1], m.shape[0])))
def linear_minima(x: Tensor, minima: Tensor) -> Tensor:
    """What a minimum per group adds to a linear: x @ (each minimum, repeated over its group)^T.

    The sum over a group is taken first, so that it costs one product per group and not one per weight, and inputs are
    not rounded.

    Args:
        x: [..., K].
        minima: [N, G], G divides K.
    """
    return torch.nn.functional.linear(x.unflatten(-1, (minima.shape[1], -1)).sum(-1), minima)


@composite(
    "embedding_minima(Tensor ids, Tensor minima, int columns) -> Tensor",
    lambda ids, minima, columns: minima.new_empty((*ids.shape, columns)),
)
def embedding_minima(ids: Tensor, minima: Tensor, columns: int) -> Tensor:
    """What a minimum per group adds to rows of a table: [V, G] to [..., columns]."""
    return torch.nn.functional.embedding(ids, minima).repeat_interleave(columns // minima.shape[1], dim=-1)
