"""Where a bundle is made."""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType


@contextlib.contextmanager
def workspace(at: Path) -> Iterator[Path]:
    """A folder beside the bundle, so that finished files move there without a copy; removed afterwards.

    Raises:
        PlanishError: a file stands where a folder is needed.
        OSError: no folder can be made there.
    """
    parent = at.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        from planish_passes.errors import PlanishError

        raise PlanishError(
            "A file stands where a folder is needed.", str(parent), "choose another place with -o"
        ) from error
    with (
        exit_on_sigterm(),
        tempfile.TemporaryDirectory(prefix=".planish-", dir=parent) as folder,
    ):
        yield Path(folder)


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
