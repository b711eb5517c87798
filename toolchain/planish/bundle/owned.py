"""Folders that belong to a running process: nobody else removes them, and once it is dead, anybody may."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import time
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_ATTEMPTS = 20
_ABANDONED = 24 * 3600  # seconds; only where locks do not exist


def claim(folder: Path) -> tuple[bool, int | None]:
    """(True, handle) when this process now owns the folder; (True, None) where locks do not exist."""
    if sys.platform == "win32":
        return True, None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return False, None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return False, None
    except OSError:  # a file system without locks
        os.close(handle)
        return True, None
    return True, handle


def reclaim(folder: Path) -> None:
    """Remove a folder whose process was killed; what cannot be removed stays for the next one."""
    free, lock = claim(folder)
    try:
        # The lock is kept until the folder is gone: between mkdir and lock its maker must see that it is taken.
        if free and (lock is not None or _age(folder) > _ABANDONED):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        if lock is not None:
            os.close(lock)


def make(parent: Path, prefix: str) -> tuple[Path, int | None]:
    """A new folder that this process owns, and the handle to close when it does not any more.

    Raises:
        OSError: it cannot be made there.
    """
    for _ in range(_ATTEMPTS):
        new = parent / f"{prefix}{secrets.token_hex(4)}"
        new.mkdir()
        free, lock = claim(new)
        # Between mkdir and lock another process may have taken it for abandoned.
        if free and new.exists():
            return new, lock
        if lock is not None:
            os.close(lock)
    raise OSError(f"cannot make a folder {prefix}* in {parent}: other processes remove it")


def sweep(parent: Path, prefix: str) -> None:
    """Reclaim every folder of that prefix."""
    for name in os.listdir(parent):
        folder = parent / name
        if name.startswith(prefix) and not folder.is_symlink() and folder.is_dir():
            reclaim(folder)


def _age(folder: Path) -> float:
    try:
        return time.time() - folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0
