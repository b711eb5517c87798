"""Compressed weights as the file stores them: integers, scales, lookup tables."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class QuantizedBlob:
    """One compressed weight, before any arithmetic.

    Attributes:
        name: output name of the operation that decompresses it.
        op_type: that operation.
        dtype: MIL element type of `data` (int4, uint8, uint6, ...).
        data: the integers, one int8 or uint8 element each: quantised values or, for lookup tables,
            indices. For sparse forms the stored elements, 1-D.
        scale: as stored; None for lookup tables and plain sparsity. A blockwise scale has the rank
            of the data, scale.shape[i] divides data.shape[i].
        offset: zero points as stored, None when there are none.
        lut: tables (*groups, entries, vector), or (entries,) before iOS 18.
        axis: the axis that vectors of scales and offsets belong to (affine form before iOS 18).
        vector_axis: the axis that an entry of several elements extends.
        mask: for sparse forms the mask as stored.
        shape: declared shape of the dense weight.
    """

    name: str
    op_type: str
    dtype: str
    data: Tensor
    scale: Tensor | None
    offset: Tensor | None
    lut: Tensor | None
    axis: int | None
    vector_axis: int | None
    mask: Tensor | None
    shape: tuple[int | None, ...] | None
