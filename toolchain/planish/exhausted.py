"""Did something run out? Libraries of other languages wrap the system's answer in errors of their own."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Literal

Resource = Literal["memory", "disk"]
_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "Cannot allocate memory",
    "std::bad_alloc",
    "bad allocation",
    "failed to map segment from shared object",
    "MemoryError",
)
_DISK = (
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "not enough space on the disk",
    "PytorchStreamWriter failed writing",
)
_NUMBERS: dict[int, Resource] = {
    errno.ENOMEM: "memory",
    errno.ENOSPC: "disk",
    errno.EDQUOT: "disk",
    errno.EFBIG: "disk",
}


def exhausted(problem: BaseException) -> Resource | None:
    """What ran out, by the exception or by one of those that led to it; None when it was nothing of the kind."""
    for error in _chain(problem):
        if isinstance(error, MemoryError):
            return "memory"
        if isinstance(error, OSError) and error.errno is not None:
            if error.errno in _NUMBERS:
                return _NUMBERS[error.errno]
            continue
        text = str(error)
        if any(part in text for part in _MEMORY):
            return "memory"
        if any(part in text for part in _DISK):
            return "disk"
    return None


def _chain(problem: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    error: BaseException | None = problem
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
