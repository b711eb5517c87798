"""Slices: reading and writing boxes of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from planish_targets.coreml.mil.ops.registry import OpError, flags, ints, op


@op("slice_by_index", moves=True)
def slice_by_index(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    """x[begin:end:stride, ...]; masks open an end or take one element and drop the dimension."""
    squeezed = flags(squeeze_mask, x.dim())
    for axis, picked in enumerate(_ranges(x, begin, end, stride, begin_mask, end_mask, squeezed)):
        x = _take(x, axis, picked)
    return x.squeeze(tuple(axis for axis, drop in enumerate(squeezed) if drop))


@op("slice_by_size", moves=True)
def slice_by_size(x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
    """size[i] elements from begin[i] on; -1 takes the rest."""
    for axis, (start, count) in enumerate(zip(ints(begin), ints(size), strict=True)):
        start = start + x.shape[axis] if start < 0 else start
        x = x.narrow(axis, start, x.shape[axis] - start if count == -1 else count)
    return x


@op("slice_update")
def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    """x with the slice that slice_by_index would read replaced."""
    squeezed = flags(squeeze_mask, x.dim())
    picked = _ranges(x, begin, end, stride, begin_mask, end_mask, squeezed)
    shape = [len(part) for part in picked]
    visible = [size for size, drop in zip(shape, squeezed, strict=True) if not drop]
    if list(update.shape) != visible:
        raise OpError(f"the update has shape {list(update.shape)}, the slice {visible}")
    if all(part.step == 1 and len(part) for part in picked):  # caches: no index for each of their elements
        result = x.clone()
        place = result
        for axis, part in enumerate(picked):
            place = place.narrow(axis, part.start, len(part))
        place.copy_(update.reshape(shape))
        return result
    grids = [
        torch.tensor(list(part), dtype=torch.int64).reshape([-1 if i == axis else 1 for i in range(x.dim())])
        for axis, part in enumerate(picked)
    ]
    return x.index_put(tuple(grids), update.to(x.dtype).reshape(shape))


def _ranges(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None,
    begin_mask: Tensor | None,
    end_mask: Tensor | None,
    squeezed: list[bool],
) -> list[range]:
    rank = x.dim()
    starts, ends, steps = ints(begin), ints(end), ints(stride, [1] * rank)
    open_start, open_end = flags(begin_mask, rank), flags(end_mask, rank)
    if not len(starts) == len(ends) == len(steps) == rank:
        raise OpError(f"begin, end and stride must have {rank} elements")
    ranges = []
    for axis, size in enumerate(x.shape):
        start = None if open_start[axis] else starts[axis]
        if squeezed[axis]:
            at = start or 0
            at = at + size if at < 0 else at
            if not 0 <= at < size:
                raise OpError(f"index {at} is outside dimension {axis} of size {size}")
            ranges.append(range(at, at + 1))
            continue
        stop = None if open_end[axis] else ends[axis]
        ranges.append(range(*slice(start, stop, steps[axis]).indices(size)))
    return ranges


def _take(x: Tensor, axis: int, picked: range) -> Tensor:
    if picked.step == 1 and len(picked):
        return x.narrow(axis, picked.start, len(picked))
    return x.index_select(axis, torch.tensor(list(picked), dtype=torch.int64))
