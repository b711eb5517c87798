"""The head of a .pte file: what can be known, and refused, before a runtime touches it. Needs no executorch.

Layout: executorch's docs/source/pte-file-format.md (flatbuffer root, "ET12", then the extended header "eh00").
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from planish_passes.errors import PlanishError

_HEAD = struct.Struct("<I4s4sIQQQ")  # flatbuffer root, its magic, header magic, header length, three sizes
_AGAIN = "compile the model again, or copy the file again"


@dataclass(frozen=True)
class Header:
    """Sizes from the extended header, in bytes.

    Args:
        program: the flatbuffer program, header included.
        base: where the segments (weights, delegate payloads) begin; 0 when there are none.
        segments: total size of the segments.
    """

    program: int
    base: int
    segments: int


def is_pte(path: Path) -> bool:
    """True when the file starts as a .pte does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:6] == b"ET" and head[6:8].isdigit() and head[8:12] == b"eh00"


def read_header(path: Path) -> Header:
    """Read the header and compare it with the file: magic, root offset, and that no byte is missing.

    Raises:
        PlanishError: the file is not there, not a .pte, or shorter than it says.
    """
    if not path.is_file():
        raise PlanishError("there is no .pte file", str(path), _AGAIN)
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD.size)
    if len(head) < _HEAD.size or not is_pte(path):
        raise PlanishError("this is not a .pte file of ExecuTorch", str(path), _AGAIN)
    root, _, _, _, program, base, segments = _HEAD.unpack(head)
    needed = base + segments if base else program
    if size < needed:
        raise PlanishError(f"the .pte file is cut off: {size:,} of {needed:,} bytes are there", str(path), _AGAIN)
    if root >= program or program > size or (base and base < program):
        raise PlanishError("the header of the .pte file contradicts itself", str(path), _AGAIN)
    return Header(program, base, segments)
