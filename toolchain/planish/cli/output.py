"""Where a bundle goes, and where it is made."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

_COMMIT = re.compile(r"[0-9a-f]{40}")


def bundle_name(model: str, recipe: str) -> str:
    """NAME-RECIPE.planish."""
    return f"{model_name(model)}-{recipe}.planish"


def model_name(model: str) -> str:
    """The name of a folder, hub id or file; of what is above it where that says nothing."""
    if os.path.exists(model):
        path = Path(model).resolve()
        if _COMMIT.fullmatch(path.name) and path.parent.name == "snapshots":
            name = path.parent.parent.name.rpartition("--")[2]  # the hub's cache: models--OWNER--NAME/snapshots/COMMIT
        else:
            name = path.parent.name if path.name == "model" else path.name
    else:
        name = model.rstrip("/").rpartition("/")[2]
    return name.removesuffix(".gguf") or "model"


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
        _removed_when_terminated(),
        tempfile.TemporaryDirectory(prefix=".planish-", dir=parent) as folder,
    ):
        yield Path(folder)


def _leave(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


@contextlib.contextmanager
def _removed_when_terminated() -> Iterator[None]:
    # Build systems stop a step with SIGTERM, which ends Python without any cleaning up.
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
