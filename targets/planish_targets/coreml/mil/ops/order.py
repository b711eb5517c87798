"""Sorting, selection and running sums."""

from __future__ import annotations

import torch
from torch import Tensor

from planish_targets.coreml.mil.ops.registry import number, op


@op("topk")
def topk(
    x: Tensor,
    k: Tensor | int = 1,
    axis: Tensor | int = -1,
    ascending: Tensor | bool = False,
    sort: Tensor | bool = True,
    return_indices: Tensor | bool = True,
    output_indices_dtype: str = "int32",
) -> tuple[Tensor, ...]:
    """The k largest (ascending: smallest) elements and their indices, always in order; k = -1 takes all."""
    dim, count = int(number(axis)), int(number(k))
    values, indices = torch.sort(x, dim=dim, descending=not bool(ascending), stable=True)
    count = x.shape[dim] if count == -1 else count
    chosen = values.narrow(dim, 0, count), indices.narrow(dim, 0, count)
    return chosen if bool(return_indices) else chosen[:1]


@op("argsort")
def argsort(x: Tensor, axis: Tensor | int = -1, ascending: Tensor | bool = False) -> Tensor:
    """Indices that sort x along an axis; ties keep their order."""
    return torch.sort(x, dim=int(number(axis)), descending=not bool(ascending), stable=True).indices


@op("cumsum")
def cumsum(
    x: Tensor, axis: Tensor | int = 0, exclusive: Tensor | bool = False, reverse: Tensor | bool = False
) -> Tensor:
    """Running sum along an axis, with or without the element itself, from either end."""
    dim = int(number(axis))
    turned = x.flip(dim) if bool(reverse) else x
    total = torch.cumsum(turned, dim=dim)
    if bool(exclusive):
        total = total - turned
    return total.flip(dim) if bool(reverse) else total
