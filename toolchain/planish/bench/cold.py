"""The page cache: what makes the difference between the first load of an artifact and every later one."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_ENOUGH = 0.02  # share of pages that may stay: another process maps them, or they are the folder's own


def drop(folder: Path) -> float | None:
    """Ask the system to forget the contents of files (Linux, no rights needed).

    Returns:
        The share (0..1) of their pages that is still in memory; None where that cannot be done or seen.
    """
    if not hasattr(os, "posix_fadvise") or sys.platform != "linux":
        return None
    for path in _files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # pages that are not yet written stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return resident(folder)


def is_cold(share: float | None) -> bool:
    """Few enough pages are left."""
    return share is not None and share <= _ENOUGH


def resident(folder: Path) -> float | None:
    """Share of the pages of all files that is in memory (mincore(2)); None where the system does not tell."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None, use_errno=True)
    there = total = 0
    for path in _files(folder):
        size = path.stat().st_size
        if not size:
            continue
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as pages,
        ):
            count = -(-size // mmap.PAGESIZE)
            seen = (ctypes.c_ubyte * count)()
            start = ctypes.c_char.from_buffer(pages)
            failed = library.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), seen)
            del start  # else the map cannot be closed
            if failed:
                return None
            there += sum(page & 1 for page in seen)
            total += count
    return there / total if total else None


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
