"""Where a bundle is made."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

_PREFIX = ".planish-work-"


@contextlib.contextmanager
def workspace(at: Path) -> Iterator[Path]:
    """A folder beside the bundle, so that finished files move there without a copy; removed afterwards.

    Temporary files of this process and its children lie inside of it while it exists. What compiles left that were
    killed is removed first.

    Raises:
        PlanishError: a file stands where a folder is needed.
        OSError: no folder can be made there.
    """
    from planish.bundle.owned import make, sweep

    parent = at.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        from planish_passes.errors import PlanishError

        raise PlanishError(
            "A file stands where a folder is needed.", str(parent), "choose another place with -o"
        ) from error
    sweep(parent, _PREFIX)
    with exit_on_sigterm():
        folder, lock = make(parent, _PREFIX)
        try:
            with _scratch_in(folder / "scratch"):
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # what resists goes with the next compile
            if lock is not None:
                os.close(lock)


@contextlib.contextmanager
def _scratch_in(folder: Path) -> Iterator[None]:
    # A process that is killed leaves its temporary files; in here the next compile finds them.
    folder.mkdir()
    told, before = os.environ.get("TMPDIR"), tempfile.tempdir
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
        if told is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = told


def _leave(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """While it lasts, SIGTERM raises SystemExit, so that everything is cleaned up."""
    # Build systems stop a step with SIGTERM, which ends Python without any cleaning up.
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
