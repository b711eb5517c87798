"""Replace a folder so that, killed at any moment, either the old one stands or the new one.

The new folder is built beside the old one as `.NAME.new-*`. Linux exchanges the two names in one step
(renameat2(2), RENAME_EXCHANGE). Elsewhere the old folder is moved to `.NAME.old-*` for a moment; a process killed
within that moment leaves it there, and `recover` moves it back.
"""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from planish.bundle.files import MANIFEST, settle, settle_folder
from planish.bundle.owned import make, reclaim
from planish_passes.errors import PlanishError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_ATTEMPTS = 20


@contextmanager
def replacing(at: Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """Yield a new empty folder that takes the place of `at` when the block ends without an exception.

    Args:
        at: the folder to make or replace; its parent must exist.
        check: called with `at` when it exists, right before it is replaced; raises to refuse.

    Raises:
        OSError: the file system refused; `at` is as it was and nothing is left behind.
    """
    recover(at)
    _clean(at)
    new, lock = make(at.parent, f".{at.name}.new-")
    try:
        yield new
        settle(new)
        replaced = _install(new, at, check)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)
    settle_folder(at.parent)
    for folder in replaced:
        # What cannot be removed now is removed by the next write: the new bundle stands either way.
        shutil.rmtree(folder, ignore_errors=True)


def recover(at: Path) -> None:
    """Move the old folder back if a process was killed while it was out of the way.

    Raises:
        OSError: the rename was refused.
    """
    aside = _siblings(at, "old") if not os.path.lexists(at) else []
    if not aside:
        return
    newest = max(aside, key=lambda p: p.stat().st_mtime_ns)
    try:
        os.rename(newest, at)
    except OSError:
        if not at.is_dir():  # otherwise another process was faster
            raise


def check_replaceable(at: Path) -> None:
    """Refuse to overwrite anything but a bundle or an empty folder.

    Raises:
        PlanishError: naming what is there.
    """
    hint = "give another output folder, or move that one away"
    if at.is_symlink() or not at.is_dir():
        kind = "a symbolic link" if at.is_symlink() else "a file"
        raise PlanishError(f"There is already {kind} of that name.", str(at), hint)
    if any(at.iterdir()) and not _was_bundle(at):
        raise PlanishError("There is already a folder of that name, and it is not a planish bundle.", str(at), hint)


def _was_bundle(at: Path) -> bool:
    # Not `open_bundle`: a damaged bundle may be replaced, too.
    manifest = at / MANIFEST
    if manifest.is_symlink() or not manifest.is_file():
        return False
    with manifest.open("rb") as file:
        return re.match(rb'\s*\{\s*"format"\s*:\s*"planish-bundle"', file.read(256)) is not None


def _siblings(at: Path, kind: str) -> list[Path]:
    if not at.parent.is_dir():
        return []
    prefix = f".{at.name}.{kind}-"
    return [at.with_name(name) for name in os.listdir(at.parent) if name.startswith(prefix)]


def _sibling(at: Path, kind: str) -> Path:
    return at.with_name(f".{at.name}.{kind}-{secrets.token_hex(4)}")


def _clean(at: Path) -> None:
    for folder in [*_siblings(at, "new"), *_siblings(at, "old")]:
        if ".new-" in folder.name or os.path.lexists(at):  # without `at` the old folder is all there is
            reclaim(folder)


def _install(new: Path, at: Path, check: Callable[[Path], None]) -> list[Path]:
    """Give `new` the name `at`; returns folders that are now in nobody's way."""
    replaced: list[Path] = []
    for _ in range(_ATTEMPTS):
        if os.path.lexists(at):
            check(at)
            if _exchange(new, at):
                return [*replaced, new]
            old = _sibling(at, "old")
            os.rename(at, old)
        else:
            old = None
        try:
            os.rename(new, at)
        except OSError:
            if not os.path.lexists(at):
                if old is not None:
                    os.rename(old, at)
                raise
            # Another process took the name in between: once more, against what stands there now.
            replaced += _retire(at, old)
            continue
        return replaced + _retire(at, old)
    raise OSError(f"other processes keep writing {at.name}")


def _retire(at: Path, old: Path | None) -> list[Path]:
    # A folder named `.old` may come back through `recover`; one that is replaced for good must not.
    if old is None:
        return []
    gone = _sibling(at, "new")
    try:
        os.rename(old, gone)
    except FileNotFoundError:  # another process moved it back, or away
        return []
    return [gone]


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the system cannot."""
    if sys.platform != "linux":
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    done = call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE))
    return bool(done == 0)
