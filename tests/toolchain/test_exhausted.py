"""What ran out, by the exception."""

from __future__ import annotations

import errno

import pytest

from planish.exhausted import exhausted
from planish_passes.errors import PlanishError


def caused(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("problem", "what"),
    [
        (MemoryError(), "memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: x"), "memory"),
        (RuntimeError("std::bad_alloc"), "memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk"),
        (OSError(errno.EFBIG, "File too large"), "disk"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "disk"),
        (caused(PlanishError("M cannot be traced", "x", "y"), MemoryError()), "memory"),
        (OSError(errno.EACCES, "Permission denied"), None),
        (RuntimeError("shapes differ"), None),
        (PlanishError("bad", "x", "y"), None),
    ],
)
def test_kinds(problem: Exception, what: str | None) -> None:
    assert exhausted(problem) == what


def test_what_was_handled_does_not_count() -> None:
    problem = ValueError("later")
    problem.__context__, problem.__suppress_context__ = MemoryError(), True
    assert exhausted(problem) is None


def test_a_ring_of_causes_ends() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert exhausted(one) is None
