"""Where output goes: results to stdout, all else to stderr."""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def out() -> Console:
    """The console for results. Text is printed as it is: no markup, no colours that follow from its words."""
    from planish.cli.harmless import HarmlessConsole

    return HarmlessConsole(file=sys.stdout, markup=False, highlight=False, emoji=False)


def err() -> Console:
    """The console for progress and errors."""
    from planish.cli.harmless import HarmlessConsole

    return HarmlessConsole(file=sys.stderr, markup=False, highlight=False, emoji=False)


def emit_json(data: object) -> None:
    """Print JSON on stdout. NaN and infinities, which JSON lacks, become strings."""
    sys.stdout.write(json.dumps(plain(data), indent=1, allow_nan=False) + "\n")
    sys.stdout.flush()


def plain(value: Any) -> Any:
    """Dataclasses, enums, paths and sets as JSON values."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, BaseException):
        return {k: getattr(value, k) for k in ("what", "where", "hint")}
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(plain, value))
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"no JSON form for {type(value).__name__}")


@contextlib.contextmanager
def results_only(verbose: bool = False) -> Iterator[None]:
    """While it lasts, whatever libraries print goes to stderr, and their warnings are dropped unless `verbose`."""
    sys.stdout.flush()
    with contextlib.ExitStack() as stack:
        if not verbose:
            stack.enter_context(_hushed())
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if _is_descriptor(1) and _is_descriptor(2):
            # Native code writes to the descriptor, past sys.stdout.
            kept = os.dup(1)
            os.dup2(2, 1)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 1)
            if os.name == "posix":
                stack.callback(ctypes.CDLL(None).fflush, None)
        yield


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    # Read when transformers and huggingface_hub are imported, which is later than now.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Levels of single loggers do not last: torch sets its own when it is imported.
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def _is_descriptor(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
