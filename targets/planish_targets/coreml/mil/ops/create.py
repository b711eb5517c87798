"""Operations that make tensors from shapes, ranges and conditions."""

from __future__ import annotations

import torch
from torch import Tensor

from planish_targets.coreml.mil.ops.registry import ints, number, op


@op("shape", moves=True)
def shape(x: Tensor) -> Tensor:
    """The sizes of x, int32."""
    return torch.tensor(list(x.shape), dtype=torch.int32)


@op("fill")
def fill(shape: Tensor, value: Tensor | float = 0.0) -> Tensor:
    """A tensor of one value."""
    return _filled(ints(shape), value)


@op("fill_like", moves=True)
def fill_like(ref_tensor: Tensor, value: Tensor | float = 0.0) -> Tensor:
    """A tensor of one value with the shape of another."""
    return _filled(list(ref_tensor.shape), value)


@op("range_1d")
def range_1d(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    """start, start + step, ... up to but without end; empty when end lies the other way."""
    first, last, by = number(start), number(end), number(step)
    if (last - first) * by <= 0:
        return torch.empty(0, dtype=start.dtype)
    return torch.arange(first, last, by, dtype=start.dtype)


@op("one_hot")
def one_hot(
    indices: Tensor,
    one_hot_vector_size: Tensor,
    axis: Tensor | int = -1,
    on_value: Tensor | int = 1,
    off_value: Tensor | int = 0,
) -> Tensor:
    """on_value where the position along the new axis equals the index, else off_value."""
    rank = indices.dim() + 1
    at = int(number(axis)) % rank
    positions = torch.arange(int(one_hot_vector_size)).reshape([-1 if i == at else 1 for i in range(rank)])
    return torch.where(indices.unsqueeze(at) == positions, on_value, off_value)


@op("band_part")
def band_part(x: Tensor, lower: Tensor | int = -1, upper: Tensor | int = -1) -> Tensor:
    """Zero the innermost matrices outside a band; a negative count keeps that whole triangle."""
    below, above = int(number(lower)), int(number(upper))
    row = torch.arange(x.shape[-2]).unsqueeze(1)
    column = torch.arange(x.shape[-1])
    keep = torch.ones(x.shape[-2:], dtype=torch.bool)
    if below >= 0:
        keep &= row - column <= below
    if above >= 0:
        keep &= column - row <= above
    return torch.where(keep, x, torch.zeros((), dtype=x.dtype))


@op("non_zero", moves=True)
def non_zero(x: Tensor) -> Tensor:
    """Coordinates of the elements that are not zero, one row each."""
    return torch.nonzero(x)


def _filled(sizes: list[int], value: Tensor | float) -> Tensor:
    scalar = value if isinstance(value, Tensor) else torch.tensor(value)
    return scalar.reshape(()).expand(sizes).clone()
