"""constexpr operations: how compressed weights become dense.

The arithmetic is done in fp32. At precision fp16 the caller rounds the result to the declared type,
as a device that decompresses at load time does; at fp32 the product of the stored integers and
scales stays exact to fp32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from planish_targets.coreml.mil.ops.elementwise import along
from planish_targets.coreml.mil.ops.registry import OpError, ints, op
from planish_targets.coreml.mil.types import BY_NAME, unpack

INDEX_TYPE = {2: "uint1", 4: "uint2", 16: "uint4", 64: "uint6", 256: "uint8"}


@op("constexpr_blockwise_shift_scale")
def constexpr_blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """scale * (data - offset), each scale for a block of data.shape[i] / scale.shape[i] elements."""
    shifted = data.to(torch.float32)
    if offset is not None:
        shifted = shifted - blockwise(offset.to(torch.float32), data)
    return blockwise(scale.to(torch.float32), data) * shifted


@op("constexpr_affine_dequantize")
def constexpr_affine_dequantize(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: Tensor) -> Tensor:
    """scale * (quantized_data - zero_point); vectors belong to the axis."""
    shifted = quantized_data.to(torch.float32) - along(zero_point, quantized_data.dim(), axis)
    return along(scale, quantized_data.dim(), axis) * shifted


@op("constexpr_cast", moves=True)
def constexpr_cast(source_val: Tensor, output_dtype: str) -> Tensor:
    """fp16 to fp32."""
    if output_dtype != "fp32":
        raise OpError(f"casts to fp32 only, not {output_dtype}")
    return source_val.to(torch.float32)


@op("constexpr_lut_to_dense", moves=True)
def constexpr_lut_to_dense(
    indices: Tensor, lut: Tensor, shape: Tensor | None = None, vector_axis: Tensor | None = None
) -> Tensor:
    """Replace indices by the entries of lookup tables.

    Before iOS 18: packed uint8 indices, one table (entries,) and the shape of the result.
    From iOS 18: indices of the result's rank and tables (*groups, entries, vector); each group is a
    block of the indices, and an entry of several elements extends the vector axis.
    """
    if shape is not None:
        return lut[packed_indices(indices, lut, shape).to(torch.int64)]
    vector = lut.shape[-1]
    tables = blockwise(lut, indices)
    entries = indices.to(torch.int64).reshape(*indices.shape, 1, 1).expand(*indices.shape, 1, vector)
    found = tables.expand(*indices.shape, *lut.shape[-2:]).gather(-2, entries).squeeze(-2)
    if vector == 1:
        return found.squeeze(-1)
    if vector_axis is None:
        raise OpError("entries of several elements need a vector axis")
    at = int(vector_axis) % indices.dim()
    return found.movedim(-1, at + 1).flatten(at, at + 1)


@op("constexpr_sparse_to_dense", moves=True)
def constexpr_sparse_to_dense(nonzero_data: Tensor, mask: Tensor, shape: Tensor | None = None) -> Tensor:
    """Spread the stored elements over the set bits of a mask, zero elsewhere."""
    if shape is not None:
        sizes = ints(shape)
        mask = unpack(mask, BY_NAME["uint1"], math.prod(sizes)).reshape(sizes)
    return spread(nonzero_data, mask)


@op("constexpr_lut_to_sparse", moves=True)
def constexpr_lut_to_sparse(
    indices_mask: Tensor, indices_nonzero_data: Tensor, lut: Tensor, vector_axis: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Look up sparse indices; the result is sparse too: (mask, elements)."""
    dense = constexpr_lut_to_dense(spread(indices_nonzero_data, indices_mask), lut, None, vector_axis)
    mask = indices_mask
    if lut.shape[-1] > 1:
        assert vector_axis is not None
        mask = indices_mask.repeat_interleave(lut.shape[-1], dim=int(vector_axis))
    return mask, dense[mask != 0]


@op("constexpr_sparse_blockwise_shift_scale", moves=True)
def constexpr_sparse_blockwise_shift_scale(
    data_mask: Tensor, nonzero_data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scale sparse data; the result is sparse too: (mask, elements)."""
    dense = constexpr_blockwise_shift_scale(spread(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask != 0]


def packed_indices(indices: Tensor, lut: Tensor, shape: Tensor) -> Tensor:
    """The indices of the form before iOS 18, unpacked to the shape of the result."""
    sizes = ints(shape)
    return unpack(indices, BY_NAME[INDEX_TYPE[lut.numel()]], math.prod(sizes)).reshape(sizes)


def blockwise(parameter: Tensor, data: Tensor) -> Tensor:
    """Repeat each element of a parameter over its block of the data, in the leading data.dim() dimensions."""
    for axis, size in enumerate(data.shape):
        count = parameter.shape[axis]
        if count == 0 or size % count:
            raise OpError(f"{count} blocks do not divide dimension {axis} of size {size}")
        # one block broadcasts by itself
        if 1 < count < size:
            parameter = parameter.repeat_interleave(size // count, dim=axis)
    return parameter


def spread(elements: Tensor, mask: Tensor) -> Tensor:
    """A dense tensor of the mask's shape with the elements at its set bits, in row-major order."""
    kept = mask != 0
    if int(kept.sum()) != elements.numel():
        raise OpError(f"{elements.numel()} elements for {int(kept.sum())} set bits of the mask")
    dense = torch.zeros(mask.shape, dtype=elements.dtype)
    dense[kept] = elements.reshape(-1)
    return dense
