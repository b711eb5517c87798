"""Element types and tensor types of MIL, Core ML's Model Intermediate Language.

Source of the numbers: `MIL.proto` (`DataType`) and `BlobDataType.hpp` in apple/coremltools.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["float", "int", "uint", "bool", "string"]


@dataclass(frozen=True)
class DType:
    """One MIL element type.

    Attributes:
        name: the spelling of the MIL text form (`fp16`, `int4`, ...).
        proto: the number in `MIL.proto`.
        blob: the number in the weight file, None when the file cannot hold the type.
        kind: what its values are.
        bits: bits of one element.
        storage: the torch type of one stored element; of one unpacked element below 8 bits.
        carrier: the torch type that the interpreter computes with (torch has next to no
            arithmetic for unsigned types above 8 bits, so those travel in a wider signed one).
    """

    name: str
    proto: int
    blob: int | None
    kind: Kind
    bits: int
    storage: torch.dtype
    carrier: torch.dtype

    @property
    def packed(self) -> bool:
        """True for elements smaller than a byte, which are stored back to back, lowest bit first."""
        return self.kind in ("int", "uint") and self.bits < 8


DTYPES = (
    DType("bool", 1, None, "bool", 8, torch.bool, torch.bool),
    DType("string", 2, None, "string", 0, torch.uint8, torch.uint8),
    DType("fp16", 10, 1, "float", 16, torch.float16, torch.float16),
    DType("fp32", 11, 2, "float", 32, torch.float32, torch.float32),
    DType("fp64", 12, None, "float", 64, torch.float64, torch.float64),
    DType("bf16", 13, 5, "float", 16, torch.bfloat16, torch.bfloat16),
    DType("fp8e4m3fn", 40, 16, "float", 8, torch.float8_e4m3fn, torch.float8_e4m3fn),
    DType("fp8e5m2", 41, 17, "float", 8, torch.float8_e5m2, torch.float8_e5m2),
    DType("int4", 25, 8, "int", 4, torch.int8, torch.int8),
    DType("int8", 21, 4, "int", 8, torch.int8, torch.int8),
    DType("int16", 22, 6, "int", 16, torch.int16, torch.int16),
    DType("int32", 23, 14, "int", 32, torch.int32, torch.int32),
    DType("int64", 24, None, "int", 64, torch.int64, torch.int64),
    DType("uint1", 37, 9, "uint", 1, torch.uint8, torch.uint8),
    DType("uint2", 36, 10, "uint", 2, torch.uint8, torch.uint8),
    DType("uint3", 39, 12, "uint", 3, torch.uint8, torch.uint8),
    DType("uint4", 35, 11, "uint", 4, torch.uint8, torch.uint8),
    DType("uint6", 38, 13, "uint", 6, torch.uint8, torch.uint8),
    DType("uint8", 31, 3, "uint", 8, torch.uint8, torch.uint8),
    DType("uint16", 32, 7, "uint", 16, torch.uint16, torch.int32),
    DType("uint32", 33, 15, "uint", 32, torch.uint32, torch.int64),
    DType("uint64", 34, None, "uint", 64, torch.uint64, torch.int64),
)
BY_PROTO = {dtype.proto: dtype for dtype in DTYPES}
BY_NAME = {dtype.name: dtype for dtype in DTYPES}
BY_BLOB = {dtype.blob: dtype for dtype in DTYPES if dtype.blob is not None}


@dataclass(frozen=True)
class TensorType:
    """The declared type of a MIL value; a dimension of None is flexible, a shape of None has no known rank."""

    dtype: DType
    shape: tuple[int | None, ...] | None

    def admits(self, shape: Sequence[int]) -> bool:
        """True when a tensor of this shape fits the declaration."""
        if self.shape is None:
            return True
        if len(self.shape) != len(shape):
            return False
        return all(want is None or want == have for want, have in zip(self.shape, shape, strict=True))

    def __str__(self) -> str:
        dims = "*" if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.dtype.name}[{dims}]"


def cast(value: Tensor, dtype: DType) -> Tensor:
    """Convert to a MIL element type: floats truncate towards zero, integers wrap to their width."""
    if dtype.kind == "bool":
        return value.to(torch.bool)
    result = value.to(dtype.carrier)
    if dtype.kind == "uint" and dtype.bits in (16, 32):
        return result & ((1 << dtype.bits) - 1)
    return result


def unpack(packed: Tensor, dtype: DType, count: int) -> Tensor:
    """Unpack `count` elements of a sub-byte type, stored lowest bit first and free to straddle bytes.

    Args:
        packed: uint8, 1-D, at least ceil(count * bits / 8) long.

    Returns:
        int8 or uint8, 1-D, one element each; a signed type is sign-extended.
    """
    bits = dtype.bits
    if bits in (1, 2, 4):
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
        fields = ((packed.unsqueeze(1) >> shifts) & ((1 << bits) - 1)).reshape(-1)[:count]
    else:
        shifts = torch.arange(8, dtype=torch.uint8)
        stream = ((packed.unsqueeze(1) >> shifts) & 1).reshape(-1)[: count * bits].reshape(count, bits)
        fields = (stream << torch.arange(bits, dtype=torch.uint8)).sum(dim=1, dtype=torch.uint8)
    if dtype.kind == "uint":
        return fields
    half = 1 << (bits - 1)
    return ((fields ^ half).to(torch.int8) - half).to(torch.int8)
