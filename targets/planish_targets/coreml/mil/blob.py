"""Reader of the MIL blob storage file (`weights/weight.bin`).

Layout, little-endian, every record on a 64-byte boundary:

    header    u32 count, u32 version = 2, 56 bytes reserved
    metadata  u32 0xDEADBEEF, u32 element type, u64 size in bytes, u64 offset of the data,
              u64 padding in bits (sub-byte types), 32 bytes reserved
    data      the elements, then padding to the next boundary

A value in the program names a file and the offset of its *metadata* record.
Source: `StorageFormat.hpp` and `BlobDataType.hpp` in apple/coremltools (mlmodel/src/MILBlob/Blob).
Written from the layout: coremltools' own reader is not used, so that it can be checked against.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import torch
from torch import Tensor

from planish_targets.coreml.mil.errors import CorruptPackage
from planish_targets.coreml.mil.types import BY_BLOB, DType, unpack

ALIGNMENT = 64
SENTINEL = 0xDEADBEEF
VERSION = 2


class BlobFile:
    """A mapped weight file.

    Args:
        path: the file.

    Raises:
        CorruptPackage: the file is missing, shorter than its header or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise CorruptPackage("the weight file is missing", str(path))
        self.size = path.stat().st_size
        if self.size < ALIGNMENT:
            raise CorruptPackage(
                f"the weight file has {self.size} bytes, its header alone needs {ALIGNMENT}", str(path)
            )
        with path.open("rb") as file:
            # copy-on-write, so that torch gets a writable view without a copy and the file stays as it is
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        _, version = struct.unpack_from("<II", self._map, 0)
        if version != VERSION:
            raise CorruptPackage(f"weight file version {version}, this reader knows version {VERSION}", str(path))

    def check(self, offset: int, dtype: DType, shape: tuple[int, ...], tensor: str) -> int:
        """Check one record against what the program declares, without reading its elements.

        Args:
            offset: offset of the metadata record in bytes.
            tensor: the MIL name of the value, for the error.

        Returns:
            The offset of the data in bytes.

        Raises:
            CorruptPackage: the record lies outside the file or contradicts the declaration.
        """

        def corrupt(what: str) -> CorruptPackage:
            return CorruptPackage(f"tensor {tensor}: {what}", f"{self.path} at byte {offset}")

        if offset % ALIGNMENT or offset < ALIGNMENT:
            raise corrupt(f"its record must lie on a {ALIGNMENT}-byte boundary after the header")
        if offset + ALIGNMENT > self.size:
            raise corrupt(f"its record ends after the file does ({self.size} bytes)")
        sentinel, kind, size, start, padding = struct.unpack_from("<IIQQQ", self._map, offset)
        if sentinel != SENTINEL:
            raise corrupt(f"no record here: marker is 0x{sentinel:08X}, expected 0x{SENTINEL:08X}")
        stored = BY_BLOB.get(kind)
        if stored is not dtype:
            found = stored.name if stored else f"unknown type {kind}"
            raise corrupt(f"the file holds {found}, the program declares {dtype.name}")
        count = _count(shape)
        wanted = -(-count * dtype.bits // 8)
        if size != wanted:
            raise corrupt(f"the file holds {size} bytes, {dtype.name}{list(shape)} needs {wanted}")
        if dtype.packed and padding != size * 8 - count * dtype.bits:
            raise corrupt(f"{padding} padding bits are recorded, {size * 8 - count * dtype.bits} are needed")
        if start % ALIGNMENT or start < offset + ALIGNMENT:
            raise corrupt(f"its data cannot start at byte {start}")
        if start + size > self.size:
            raise corrupt(f"truncated: its data ends at byte {start + size}, the file at {self.size}")
        return int(start)

    def read(self, offset: int, dtype: DType, shape: tuple[int, ...], tensor: str) -> Tensor:
        """Read one tensor: a view of the mapped file, or a copy for packed and widened types.

        Args and errors: as `check`.

        Returns:
            A tensor of `dtype.carrier` with the given shape.
        """
        start = self.check(offset, dtype, shape, tensor)
        count = _count(shape)
        if count == 0:
            return torch.empty(shape, dtype=dtype.carrier)
        if dtype.packed:
            packed = torch.frombuffer(self._map, dtype=torch.uint8, count=-(-count * dtype.bits // 8), offset=start)
            return unpack(packed, dtype, count).reshape(shape)
        flat = torch.frombuffer(self._map, dtype=dtype.storage, count=count, offset=start)
        return flat.to(dtype.carrier).reshape(shape)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for dim in shape:
        count *= dim
    return count
