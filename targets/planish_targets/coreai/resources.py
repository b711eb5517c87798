"""Large constants of an MLIR bytecode file, by key, without MLIR (mlir.llvm.org/docs/BytecodeFormat)."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

from planish_passes.errors import PlanishError

_MAGIC = b"ML\xefR"
_STRINGS, _RESOURCES, _OFFSETS = 0, 5, 6
_BLOB, _ALIGNED, _PADDING = 0, 0x80, 0xCB


@dataclass(frozen=True)
class Resources:
    """Where the bytes of each constant lie.

    Args:
        path: the file.
        places: key -> (offset, size) of the bytes.
    """

    path: Path
    places: dict[str, tuple[int, int]]

    def read(self, key: str) -> bytes:
        """The bytes of one constant.

        Raises:
            PlanishError: the file has none of that key.
        """
        if key not in self.places:
            raise damaged(self.path, f"has no constant {key!r}")
        offset, size = self.places[key]
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(size)


def resources(path: Path) -> Resources:
    """Look up all constants of a file; only its tables are read.

    Raises:
        PlanishError: the file is not whole MLIR bytecode.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return Resources(path, _places(data))
    except (OSError, ValueError, IndexError, UnicodeDecodeError) as problem:
        raise damaged(path, f"is not whole MLIR bytecode ({problem})") from problem


def damaged(path: Path, what: str) -> PlanishError:
    """The error for a file that is not as it was written."""
    return PlanishError(f"the Core AI model {what}", str(path), "compile the model again")


class _Cursor:
    def __init__(self, data: mmap.mmap, at: int) -> None:
        self.data, self.at = data, at

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def number(self) -> int:
        """Prefixed variable-width integer: trailing zeros of the first byte are the number of bytes behind it."""
        first = self.byte()
        if first & 1:
            return first >> 1
        more = 8 if first == 0 else (first & -first).bit_length() - 1
        rest = self.data[self.at : self.at + more]
        if len(rest) < more:
            raise ValueError("it ends inside a number")
        self.at += more
        return (
            int.from_bytes(rest, "little")
            if first == 0
            else int.from_bytes(bytes([first]) + rest, "little") >> (more + 1)
        )

    def align(self, to: int) -> None:
        while self.at % to:
            if self.byte() != _PADDING:
                raise ValueError("padding is missing")


def _sections(data: mmap.mmap) -> dict[int, tuple[int, int]]:
    if data[:4] != _MAGIC:
        raise ValueError("its first bytes are others")
    cursor = _Cursor(data, 4)
    cursor.number()  # version
    cursor.at = data.find(b"\0", cursor.at) + 1  # producer
    if not cursor.at:
        raise ValueError("it ends inside a name")
    found: dict[int, tuple[int, int]] = {}
    while cursor.at < len(data):
        kind, size = cursor.byte(), cursor.number()
        if kind & _ALIGNED:
            cursor.align(cursor.number())
        if cursor.at + size > len(data):
            raise ValueError("a section goes beyond its end")
        found[kind & ~_ALIGNED] = (cursor.at, size)
        cursor.at += size
    return found


def _strings(data: mmap.mmap, at: int, size: int) -> list[str]:
    """Lengths come first, that of the last string before all others; each string ends with a zero byte."""
    cursor = _Cursor(data, at)
    lengths = [cursor.number() for _ in range(cursor.number())]
    stop, found = at + size, []
    for length in lengths:
        found.append(data[stop - length : stop - 1].decode())
        stop -= length
    return found[::-1]


def _places(data: mmap.mmap) -> dict[str, tuple[int, int]]:
    sections = _sections(data)
    if _STRINGS not in sections:
        raise ValueError("it has no strings")
    strings = _strings(data, *sections[_STRINGS])
    if _OFFSETS not in sections or _RESOURCES not in sections:
        return {}
    (at, size), (offset, _) = sections[_OFFSETS], sections[_RESOURCES]
    cursor, places = _Cursor(data, at), dict[str, tuple[int, int]]()
    external = cursor.number()
    while cursor.at < at + size:
        cursor.number()  # the group's owner
        for _ in range(cursor.number()):
            key, length, kind = strings[cursor.number()], cursor.number(), cursor.byte()
            if kind == _BLOB and not external:
                places[key] = _blob(data, offset)
            offset += length
        external = max(external - 1, 0)
    return places


def _blob(data: mmap.mmap, at: int) -> tuple[int, int]:
    cursor = _Cursor(data, at)
    alignment, size = cursor.number(), cursor.number()
    cursor.align(alignment)
    if cursor.at + size > len(data):
        raise ValueError("a constant goes beyond its end")
    return cursor.at, size
