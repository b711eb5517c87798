"""Gather and scatter.

Core ML leaves an index out of range undefined unless `validate_indices` is set. A result that depends
on one cannot be reproduced, so it is an error here always. Negative indices count from the end before
iOS 17; from iOS 17 on (the operation then has the parameter `validate_indices`) they are out of range.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from planish_targets.coreml.mil.ops.registry import OpError, number, op


@op("gather", moves=True)
def gather(
    x: Tensor,
    indices: Tensor,
    axis: Tensor | int = 0,
    batch_dims: Tensor | int = 0,
    validate_indices: Tensor | None = None,
) -> Tensor:
    """Replace dimension `axis` by the slices that the indices name; the first batch_dims pair up.

    x (*B, *P, A, *Q), indices (*B, *I) -> (*B, *P, *I, *Q)
    """
    at, batch = int(number(axis)) % x.dim(), int(number(batch_dims))
    chosen = _in_range(indices, x.shape[at], validate_indices)
    groups, before = math.prod(x.shape[:batch]), math.prod(x.shape[batch:at])
    after = math.prod(x.shape[at + 1 :])
    shape = [*x.shape[:at], *indices.shape[batch:], *x.shape[at + 1 :]]
    if groups == 1:
        return x.index_select(at, chosen.reshape(-1)).reshape(shape)
    flat = x.reshape(groups, before, x.shape[at], after)
    picks = chosen.reshape(groups, 1, -1, 1)
    return flat.gather(2, picks.expand(groups, before, picks.shape[2], after)).reshape(shape)


@op("gather_along_axis", moves=True)
def gather_along_axis(
    x: Tensor, indices: Tensor, axis: Tensor | int = 0, validate_indices: Tensor | None = None
) -> Tensor:
    """output[..., i, ...] = x[..., indices[..., i, ...], ...]; the result has the shape of the indices."""
    at = int(number(axis)) % x.dim()
    return torch.take_along_dim(x, _in_range(indices, x.shape[at], validate_indices), dim=at)


@op("gather_nd", moves=True)
def gather_nd(
    x: Tensor, indices: Tensor, batch_dims: Tensor | int = 0, validate_indices: Tensor | None = None
) -> Tensor:
    """The slices of x whose leading coordinates (after the batch) are the rows of the indices."""
    batch = int(number(batch_dims))
    parts = _coordinates(indices, list(x.shape[batch:]), validate_indices)
    lead = [
        torch.arange(size).reshape([-1 if i == axis else 1 for i in range(indices.dim() - 1)])
        for axis, size in enumerate(x.shape[:batch])
    ]
    return x[(*lead, *parts)]


@op("scatter")
def scatter(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: Tensor | int = 0,
    mode: str = "update",
    validate_indices: Tensor | None = None,
) -> Tensor:
    """Combine whole slices along an axis; updates has the shape of data with that axis replaced."""
    at = int(number(axis)) % data.dim()
    chosen = _in_range(indices, data.shape[at], validate_indices).reshape(-1)
    rows = updates.reshape([*data.shape[:at], chosen.numel(), *data.shape[at + 1 :]])
    where = chosen.reshape([-1 if i == at else 1 for i in range(data.dim())]).expand(rows.shape)
    return _combine(data, _linear(data, where, at), rows, mode)


@op("scatter_along_axis")
def scatter_along_axis(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: Tensor | int = 0,
    mode: str = "add",
    validate_indices: Tensor | None = None,
) -> Tensor:
    """Combine elementwise along an axis; updates has the shape of the indices."""
    at = int(number(axis)) % data.dim()
    chosen = _in_range(indices, data.shape[at], validate_indices)
    return _combine(data, _linear(data, chosen, at), updates, mode)


@op("scatter_nd")
def scatter_nd(
    data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add", validate_indices: Tensor | None = None
) -> Tensor:
    """Combine the slices of data whose leading coordinates are the rows of the indices."""
    depth = indices.shape[-1]
    parts = _coordinates(indices, list(data.shape), validate_indices)
    inner = math.prod(data.shape[depth:])
    start = torch.zeros(indices.shape[:-1], dtype=torch.int64)
    for part, size in zip(parts, data.shape[:depth], strict=True):
        start = start * size + part
    linear = start.reshape(-1, 1) * inner + torch.arange(inner)
    return _combine(data, linear, updates, mode)


def _in_range(indices: Tensor, size: int, validate: Tensor | None) -> Tensor:
    chosen = indices.to(torch.int64)
    low = -size if validate is None else 0
    if chosen.numel() and not (low <= int(chosen.min()) and int(chosen.max()) < size):
        raise OpError(f"indices from {int(chosen.min())} to {int(chosen.max())} leave the range [{low}, {size})")
    return torch.where(chosen < 0, chosen + size, chosen)


def _coordinates(indices: Tensor, sizes: list[int], validate: Tensor | None) -> list[Tensor]:
    return [_in_range(part, size, validate) for part, size in zip(indices.unbind(-1), sizes, strict=False)]


def _linear(data: Tensor, chosen: Tensor, axis: int) -> Tensor:
    """Positions in the flattened data of elements whose coordinates are their own, but `chosen` at the axis."""
    linear = torch.zeros(chosen.shape, dtype=torch.int64)
    for dim, size in enumerate(data.shape):
        if dim == axis:
            part = chosen
        else:
            part = torch.arange(chosen.shape[dim]).reshape([-1 if i == dim else 1 for i in range(data.dim())])
        linear = linear * size + part
    return linear


def _combine(data: Tensor, linear: Tensor, updates: Tensor, mode: str) -> Tensor:
    flat, where = data.reshape(-1), linear.reshape(-1)
    values = updates.to(data.dtype).reshape(-1)
    if values.numel() != where.numel():
        raise OpError(f"{values.numel()} updates for {where.numel()} places")
    if mode == "update":
        result = flat.scatter(0, where, values)
    elif mode in ("add", "sub"):
        result = flat.scatter_add(0, where, values if mode == "add" else -values)
    elif mode in ("mul", "max", "min"):
        result = flat.scatter_reduce(0, where, values, {"mul": "prod", "max": "amax", "min": "amin"}[mode])
    elif mode == "div":
        result = flat / torch.ones_like(flat).scatter_reduce(0, where, values, "prod")
    else:
        raise OpError(f"unknown scatter mode {mode!r}")
    return result.reshape(data.shape)
