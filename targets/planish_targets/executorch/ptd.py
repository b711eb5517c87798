"""Read a .ptd file: constants that a program keeps outside itself, by name. Its head needs no executorch.

Layout: executorch's extension/flat_tensor (flatbuffer root, "FT01", then the extended header "FH01").
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish_passes.errors import PlanishError
from planish_targets.quiet import quiet

SUFFIX = ".ptd"
_HEAD = struct.Struct("<I4s4sIQQQQ")  # root, its magic, header magic, header length, offset and size of both parts
_AGAIN = "copy it again from where the .pte came from, or compile the model again"


@dataclass(frozen=True)
class DataFile:
    """An open .ptd file.

    Args:
        path: the file.
        places: name of each constant -> (first byte, number of bytes).
    """

    path: Path
    places: Mapping[str, tuple[int, int]]
    _bytes: mmap.mmap

    def named(self, key: str) -> bytes:
        """The bytes of one constant.

        Raises:
            PlanishError: it is not in the file, which then belongs to another program.
        """
        begin, size = self.place(key)
        return self._bytes[begin : begin + size]

    def place(self, key: str) -> tuple[int, int]:
        """First byte and number of bytes of one constant; see `named`."""
        if key not in self.places:
            what = f"constant {key!r} is not in {self.path.name}: the file belongs to another program"
            raise PlanishError(what, str(self.path), _AGAIN)
        return self.places[key]


def check_head(path: Path) -> tuple[int, int, int]:
    """First byte and size of the table of contents, and first byte of the constants, when no byte is missing.

    Raises:
        PlanishError: the file is not there, not a .ptd, or shorter than it says.
    """
    if not path.is_file():
        raise PlanishError(f"the program keeps its weights in {path.name}, which is not there", str(path), _AGAIN)
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD.size)
    if len(head) < _HEAD.size or (head[4:8], head[8:12]) != (b"FT01", b"FH01"):
        raise PlanishError(f"{path.name} is not a .ptd file of ExecuTorch", str(path), _AGAIN)
    *_, at, length, base, segments = _HEAD.unpack(head)
    needed = max(at + length, base + segments)
    if size < needed:
        raise PlanishError(f"{path.name} is cut off: {size:,} of {needed:,} bytes are there", str(path), _AGAIN)
    return at, length, base


def open_ptd(path: Path) -> DataFile:
    """Open and parse a .ptd file.

    Raises:
        PlanishError: it is not a whole .ptd file.
    """
    *_, base = check_head(path)
    data = _mapped(path)
    table = _table(path, data)
    places = {e.key: (base + (s := table.segments[e.segment_index]).offset, s.size) for e in table.named_data}
    if any(begin + size > len(data) for begin, size in places.values()):
        raise PlanishError(f"{path.name} names constants behind its own end", str(path), _AGAIN)
    return DataFile(path, places, data)


def layouts(path: Path) -> dict[str, Any]:
    """Name of each constant -> dtype and shape as executorch records them; None for what a delegate reads.

    Raises:
        PlanishError: it is not a whole .ptd file.
    """
    return {e.key: e.tensor_layout for e in _table(path, _mapped(path)).named_data}


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _table(path: Path, data: mmap.mmap) -> Any:
    at, length, _ = check_head(path)
    with quiet():
        from executorch.extension.flat_tensor.serialize.serialize import _deserialize_to_flat_tensor
    try:
        # What stands before the table of contents belongs to it: offsets in it count from the file's first byte.
        table = _deserialize_to_flat_tensor(data[: at + length])
        [table.segments[e.segment_index] for e in table.named_data]
    # flatc and the decoder of its JSON check little: garbage ends in whatever error its bytes lead to.
    except Exception as problem:
        what = f"the table of contents of {path.name} cannot be read ({type(problem).__name__})"
        raise PlanishError(what, str(path), _AGAIN) from problem
    return table
