"""Quantised weights as a GGUF file stores them: which blocks make up a model's weight, and what is in a block.

Layouts: ggml's `block_q4_0`, `block_q4_1` and `block_q8_0`. A block holds 32 neighbouring input features of one row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from planish_passes.rows import Rows
from planish_passes.weights import TensorSpec, WeightFormat

GROUP = 32
FORMATS: Mapping[str, WeightFormat] = {
    "Q4_0": WeightFormat(4, GROUP),
    "Q4_1": WeightFormat(4, GROUP),
    "Q8_0": WeightFormat(8, GROUP),
}
WITH_MINIMA = frozenset({"Q4_1"})
_MIDDLE = 8  # of the codes 0..15


class Unpacked(NamedTuple):
    """The numbers in blocks: w = scales * values + minima.

    Args:
        values: int8 [N, K].
        scales: float32 [N, K / 32], float16 values. May be zero or negative.
        minima: float32 [N, K / 32]; None where the type has none.
    """

    values: Tensor
    scales: Tensor
    minima: Tensor | None


@dataclass(frozen=True)
class Blocks:
    """A weight of the model, in its blocks.

    Args:
        kind: ggml's name of the type, a key of `FORMATS`.
        spec: uint8 [N, bytes of a row].
        rows: (start, stop) -> those rows of the model's weight, in memory of their own.
        sources: names of the tensors in the file.
    """

    kind: str
    spec: TensorSpec
    rows: Rows
    sources: tuple[str, ...]

    @property
    def format(self) -> WeightFormat:
        """Integers and scales."""
        return FORMATS[self.kind]


def unpack(raw: Tensor, kind: str) -> Unpacked:
    """Blocks as numbers; nothing is rounded.

    4-bit codes are centred: w = d * (q - 8) for Q4_0, and d * q + m = d * (q - 8) + (m + 8 * d) for Q4_1. Kernels that
    round their inputs make an error in proportion to the integers, which is least around zero. m + 8 * d is exact in
    float32 unless m is more than 4096 times as large as d, and rounded in its last bit then, as d * q + m itself is.

    Args:
        raw: uint8 [N, bytes of a row].
        kind: a key of `FORMATS`.
    """
    rows = raw.shape[0]
    if kind == "Q8_0":
        scales, codes = _split(raw, 1, GROUP)
        return Unpacked(codes.view(torch.int8).reshape(rows, -1), scales[..., 0], None)
    scales, codes = _split(raw, 1 + (kind in WITH_MINIMA), GROUP // 2)
    halves = torch.cat([codes & 15, codes >> 4], dim=-1)  # element i and element i + 16 share a byte
    values = (halves.view(torch.int8) - _MIDDLE).reshape(rows, -1)
    minima = scales[..., 1] + _MIDDLE * scales[..., 0] if kind in WITH_MINIMA else None
    return Unpacked(values, scales[..., 0].contiguous(), minima)


def dequantised(raw: Tensor, kind: str) -> Tensor:
    """float32 [N, K], to the bit what gguf's `dequantize` makes of blocks, in a third of its time.

    Args:
        raw: uint8 [N, bytes of a row].
        kind: a key of `FORMATS`.
    """
    whole = kind == "Q8_0"
    numbers, codes = _split(raw, 1 + (kind in WITH_MINIMA), GROUP if whole else GROUP // 2)
    values = torch.empty((*codes.shape[:2], GROUP))
    if whole:
        values.copy_(codes.view(torch.int8))
    else:
        values[..., : GROUP // 2] = codes & 15
        values[..., GROUP // 2 :] = codes >> 4
        if kind not in WITH_MINIMA:
            values.sub_(_MIDDLE)
    values.mul_(numbers[..., :1])
    if kind in WITH_MINIMA:
        values.add_(numbers[..., 1:])
    return values.reshape(raw.shape[0], -1)


def _split(raw: Tensor, halves: int, codes: int) -> tuple[Tensor, Tensor]:
    """float32 [N, G, halves] and uint8 [N, G, codes]."""
    blocks = raw.reshape(raw.shape[0], -1, 2 * halves + codes)
    numbers = blocks[..., : 2 * halves].contiguous().view(torch.float16).to(torch.float32)
    return numbers, blocks[..., 2 * halves :].contiguous()


def row_numbers(arranged: Tensor, columns: int) -> Tensor | None:
    """Which rows a rearrangement took, when it moved nothing but whole rows.

    Args:
        arranged: integers [N, K]; what became of tensors whose elements were numbered in row-major order, one tensor
            behind the other.
        columns: K of those tensors.

    Returns:
        int64 [N], numbers of rows; None when elements left their rows, or their values changed.
    """
    if arranged.dim() != 2 or arranged.shape[1] != columns or arranged.dtype.is_floating_point:
        return None
    first = arranged[:, 0]
    along = first[:, None] + torch.arange(columns, dtype=arranged.dtype)
    whole = torch.equal(arranged, along) and not bool((first % columns).any())
    return first.to(torch.int64) // columns if whole else None


def numbered(shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Tensors whose elements are numbered, one tensor behind the other."""
    sizes = [torch.Size(shape).numel() for shape in shapes]
    kind = torch.int32 if sum(sizes) < 2**31 else torch.int64
    found, at = list[Tensor](), 0
    for shape, size in zip(shapes, sizes, strict=True):
        found.append(torch.arange(at, at + size, dtype=kind).reshape(shape))
        at += size
    return found


def gather(taken: Tensor, counts: Sequence[int], read: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Rows of several tensors, one behind the other, by number.

    Args:
        taken: int64 [n].
        counts: rows of each tensor.
        read: (tensor, its row numbers) -> those rows.
    """
    if len(counts) == 1:
        return read(0, taken)
    parts, places = list[Tensor](), torch.empty_like(taken)
    at = done = 0
    for number, count in enumerate(counts):
        here = ((taken >= at) & (taken < at + count)).nonzero()[:, 0]
        if len(here):
            parts.append(read(number, taken[here] - at))
            places[here] = torch.arange(done, done + len(here))
            done += len(here)
        at += count
    return torch.cat(parts)[places]
