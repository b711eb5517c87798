"""Matrix products, convolutions and attention; all accumulate in fp32."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from planish_targets.coreml.mil.ops.pool import spatial_pads
from planish_targets.coreml.mil.ops.registry import OpError, ints, number, op

CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


@op("linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias; weight is (D_out, D_in)."""
    return F.linear(x, weight, bias)


@op("matmul")
def matmul(x: Tensor, y: Tensor, transpose_x: Tensor | bool = False, transpose_y: Tensor | bool = False) -> Tensor:
    """Batched matrix product; the flags swap the last two dimensions and mean nothing to a vector."""
    if bool(transpose_x) and x.dim() > 1:
        x = x.transpose(-1, -2)
    if bool(transpose_y) and y.dim() > 1:
        y = y.transpose(-1, -2)
    return torch.matmul(x, y)


@op("einsum")
def einsum(values: tuple[Tensor, ...], equation: str) -> Tensor:
    """Product of two tensors by an einsum equation."""
    return torch.einsum(equation, *values)


@op("conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor | int = 1,
) -> Tensor:
    """1-D, 2-D or 3-D convolution of x (n, C_in, *D) with weight (C_out, C_in / groups, *K)."""
    rank = x.dim() - 2
    steps, spread = ints(strides, [1] * rank), ints(dilations, [1] * rank)
    kernel = [(size - 1) * by + 1 for size, by in zip(weight.shape[2:], spread, strict=True)]
    pads = spatial_pads(pad_type, list(x.shape[2:]), kernel, steps, ints(pad))
    return CONV[rank](_padded(x, pads), weight, bias, steps, 0, spread, int(number(groups)))


@op("conv_transpose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Tensor | None = None,
    output_shape: Tensor | None = None,
    pad_type: str = "valid",
    strides: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor | int = 1,
) -> Tensor:
    """Transposed convolution of x (n, C_in, *D) with weight (C_in, C_out / groups, *K).

    Padding crops the full result; what an output shape asks for beyond it is zero before the bias.
    """
    rank = x.dim() - 2
    steps, spread = ints(strides, [1] * rank), ints(dilations, [1] * rank)
    full = CONV_TRANSPOSE[rank](x, weight, None, steps, 0, 0, int(number(groups)), spread)
    sizes = list(full.shape[2:])
    custom = ints(pad, [0] * 2 * rank) if pad_type == "custom" else [0] * 2 * rank
    if output_shape is not None:
        wanted = ints(output_shape)[-rank:]
    elif pad_type.startswith("same"):
        wanted = [size * step for size, step in zip(x.shape[2:], steps, strict=True)]
    else:
        wanted = [size - custom[2 * i] - custom[2 * i + 1] for i, size in enumerate(sizes)]
    crops = []
    for i, (have, want) in enumerate(zip(sizes, wanted, strict=True)):
        spare = max(have - want, 0)
        before = {"same": spare // 2, "same_lower": spare - spare // 2}.get(pad_type, custom[2 * i])
        crops.append((-before, want - have + before))
    result = _padded(full, crops)
    return result if bias is None else result + bias.reshape([1, -1] + [1] * rank)


@op("scaled_dot_product_attention")
def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """softmax(query @ key.T / sqrt(E) + mask) @ value; a boolean mask keeps where True.

    query (..., L, E), key (..., S, E), value (..., S, EV) -> (..., L, EV)
    """
    if query.dim() != key.dim() or query.dim() != value.dim():
        raise OpError("query, key and value must have the same rank")
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.softmax(scores, dim=-1) @ value


def _padded(x: Tensor, pads: list[tuple[int, int]]) -> Tensor:
    if not any(before or after for before, after in pads):
        return x
    return F.pad(x, [amount for pair in reversed(pads) for amount in pair])
