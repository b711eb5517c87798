"""Memory of the process."""

from __future__ import annotations

import ctypes
import sys


def give_back_memory() -> None:
    """What was freed goes back to the system: glibc keeps it for later, and the peak would grow by it."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
        if trim is not None:
            trim(0)
