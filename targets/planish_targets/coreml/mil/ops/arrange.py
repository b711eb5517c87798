"""Operations that rearrange, join or repeat elements."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from planish_targets.coreml.mil.ops.registry import OpError, ints, number, op


@op("identity", moves=True)
def identity(x: Tensor) -> Tensor:
    """x."""
    return x


@op("expand_dims", moves=True)
def expand_dims(x: Tensor, axes: Tensor) -> Tensor:
    """Insert dimensions of size 1 at the given axes of the result."""
    given = ints(axes)
    rank = x.dim() + len(given)
    for axis in sorted(axis % rank for axis in given):
        x = x.unsqueeze(axis)
    return x


@op("squeeze", moves=True)
def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Drop dimensions of size 1: the given ones (others among them stay) or all."""
    return x.squeeze() if axes is None else x.squeeze(tuple(ints(axes)))


@op("reshape", moves=True)
def reshape(x: Tensor, shape: Tensor) -> Tensor:
    """Same elements, new shape: 0 keeps the size of that dimension, one -1 is inferred."""
    wanted = ints(shape)
    if 0 in wanted and x.numel() and len(wanted) != x.dim():
        raise OpError(f"a 0 in the shape {wanted} needs an input of the same rank, it has {x.dim()}")
    if len(wanted) == x.dim():
        wanted = [have if size == 0 else size for have, size in zip(x.shape, wanted, strict=True)]
    return x.reshape(wanted)


@op("reshape_like", moves=True)
def reshape_like(
    x: Tensor,
    ref_tensors: tuple[Tensor, ...],
    begins: tuple[Tensor, ...],
    ends: tuple[Tensor, ...],
    end_masks: tuple[Tensor, ...],
) -> Tensor:
    """Reshape to a shape put together from slices of the shapes of other tensors."""
    shape: list[int] = []
    for reference, begin, end, open_end in zip(ref_tensors, begins, ends, end_masks, strict=True):
        shape += reference.shape[int(begin) : None if bool(open_end) else int(end)]
    return x.reshape(shape)


@op("flatten2d", moves=True)
def flatten2d(x: Tensor, axis: Tensor | int = 1) -> Tensor:
    """(product of the sizes before axis, product of the rest)."""
    at = int(number(axis))
    rows = 1
    for size in x.shape[: at if at >= 0 else at + x.dim()]:
        rows *= size
    return x.reshape(rows, x.numel() // rows if rows else 0)


@op("transpose", moves=True)
def transpose(x: Tensor, perm: Tensor) -> Tensor:
    """Permute the dimensions."""
    return x.permute(ints(perm))


@op("tile", moves=True)
def tile(x: Tensor, reps: Tensor) -> Tensor:
    """Repeat dimension i reps[i] times."""
    return x.repeat(ints(reps))


@op("concat", moves=True)
def concat(values: tuple[Tensor, ...], axis: Tensor, interleave: Tensor | bool = False) -> Tensor:
    """Join along an axis, one whole after the other or element by element in turn; scalars make a vector."""
    values = tuple(value.reshape(1) if value.dim() == 0 else value for value in values)
    at = int(axis) % values[0].dim()
    if not bool(interleave):
        return torch.cat(values, dim=at)
    return torch.stack(values, dim=at + 1).flatten(at, at + 1)


@op("stack", moves=True)
def stack(values: tuple[Tensor, ...], axis: Tensor) -> Tensor:
    """Join along a new axis."""
    return torch.stack(values, dim=int(axis))


@op("split", moves=True)
def split(
    x: Tensor, axis: Tensor, num_splits: Tensor | None = None, split_sizes: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Cut along an axis into the given sizes or into equal parts."""
    at = int(axis)
    if split_sizes is not None:
        return torch.split(x, ints(split_sizes), dim=at)
    if num_splits is None:
        raise OpError("needs num_splits or split_sizes")
    part, rest = divmod(x.shape[at], int(num_splits))
    if rest:
        raise OpError(f"cannot cut {x.shape[at]} into {int(num_splits)} equal parts")
    return torch.split(x, part, dim=at)


@op("pad")
def pad(x: Tensor, pad: Tensor, mode: str = "constant", constant_val: Tensor | float = 0.0) -> Tensor:
    """Pad the last dimensions: before and after of each in turn."""
    amounts = ints(pad)
    first = x.dim() - len(amounts) // 2
    pairs = [(amounts[2 * i], amounts[2 * i + 1]) for i in range(len(amounts) // 2)]
    if mode == "constant":
        return F.pad(x, [amount for pair in reversed(pairs) for amount in pair], value=number(constant_val))
    for i, (before, after) in enumerate(pairs):
        size = x.shape[first + i]
        at = torch.arange(-before, size + after)
        if mode == "replicate":
            at = at.clamp(0, size - 1)
        elif mode == "reflect":
            if max(before, after) >= size:
                raise OpError(f"reflect padding of {max(before, after)} needs more than {size} elements")
            at = (size - 1) - ((size - 1) - at.abs()).abs()
        else:
            raise OpError(f"unknown padding mode {mode!r}")
        x = x.index_select(first + i, at)
    return x


@op("reverse", moves=True)
def reverse(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Reverse the order along the axes, along all by default."""
    return x.flip(ints(axes, list(range(x.dim()))))


@op("reverse_sequence", moves=True)
def reverse_sequence(x: Tensor, lengths: Tensor, seq_axis: Tensor | int = 0, batch_axis: Tensor | int = 0) -> Tensor:
    """Reverse the first lengths[i] elements of item i along the sequence axis."""
    sequence, batch = int(number(seq_axis)) % x.dim(), int(number(batch_axis)) % x.dim()
    position = torch.arange(x.shape[sequence])
    ends = lengths.to(torch.int64).unsqueeze(1)
    source = torch.where(position < ends, ends - 1 - position, position)
    shape = [1] * x.dim()
    shape[batch], shape[sequence] = source.shape
    source = source if batch < sequence else source.transpose(0, 1)
    return torch.take_along_dim(x, source.reshape(shape).expand(x.shape), dim=sequence)


@op("sliding_windows", moves=True)
def sliding_windows(x: Tensor, axis: Tensor, size: Tensor, stride: Tensor | int = 1) -> Tensor:
    """All windows along an axis; their elements follow the axis as a new dimension."""
    at = int(axis) % x.dim()
    return x.unfold(at, int(size), int(number(stride))).movedim(-1, at + 1)


@op("depth_to_space", moves=True)
def depth_to_space(x: Tensor, block_size: Tensor) -> Tensor:
    """(n, C, H, W) -> (n, C / b^2, H b, W b); the block offsets are the slow part of the channel."""
    n, c, h, w = x.shape
    b = int(block_size)
    return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


@op("space_to_depth", moves=True)
def space_to_depth(x: Tensor, block_size: Tensor) -> Tensor:
    """The inverse of depth_to_space."""
    n, c, h, w = x.shape
    b = int(block_size)
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)


@op("pixel_shuffle", moves=True)
def pixel_shuffle(x: Tensor, upscale_factor: Tensor) -> Tensor:
    """(n, C f^2, H, W) -> (n, C, H f, W f); the block offsets are the fast part of the channel."""
    return F.pixel_shuffle(x, int(upscale_factor))


@op("pixel_unshuffle", moves=True)
def pixel_unshuffle(x: Tensor, downscale_factor: Tensor) -> Tensor:
    """The inverse of pixel_shuffle."""
    return F.pixel_unshuffle(x, int(downscale_factor))


@op("space_to_batch")
def space_to_batch(x: Tensor, block_shape: Tensor, paddings: Tensor) -> Tensor:
    """Move blocks of the two spatial dimensions, after padding, into the batch (slow part: offset)."""
    b0, b1 = ints(block_shape)
    top, bottom, left, right = ints(paddings)
    x = F.pad(x, [left, right, top, bottom])
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // b0, b0, w // b1, b1).permute(3, 5, 0, 1, 2, 4)
    return blocks.reshape(n * b0 * b1, c, h // b0, w // b1)


@op("batch_to_space", moves=True)
def batch_to_space(x: Tensor, block_shape: Tensor, crops: Tensor) -> Tensor:
    """The inverse of space_to_batch; crops take the place of paddings."""
    b0, b1 = ints(block_shape)
    top, bottom, left, right = ints(crops)
    n, c, h, w = x.shape
    blocks = x.reshape(b0, b1, n // (b0 * b1), c, h, w).permute(2, 3, 4, 0, 5, 1)
    whole = blocks.reshape(n // (b0 * b1), c, h * b0, w * b1)
    return whole[:, :, top : h * b0 - bottom, left : w * b1 - right]
