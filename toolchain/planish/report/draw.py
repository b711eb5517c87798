"""From Vega specifications to SVG, by vl-convert, in a process of its own.

The library is native code (V8): if it crashes, hangs or is not there, the page does without plots and says so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planish.report.clean import Unclean, clean

TIMEOUT = 60.0  # seconds; a page takes half a second
SCRIPT = Path(__file__).with_name("vega.py")


def draw(specs: Mapping[str, Mapping[str, Any]], timeout: float = TIMEOUT) -> tuple[dict[str, str], str]:
    """Name -> inline SVG, and why there are none ("" when all is well)."""
    if not specs:
        return {}, ""
    command = [sys.executable, "-P", str(SCRIPT)]  # by path: it needs nothing of ours
    given = json.dumps(list(specs.values()), allow_nan=False).encode()
    try:
        done = subprocess.run(command, input=given, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {}, f"the plotting process did not answer within {timeout:g} s"
    except OSError as problem:
        return {}, f"the plotting process cannot be started: {problem.strerror}"
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        return {}, f"the plotting process failed: {last[-1]}"
    try:
        made = json.loads(done.stdout)
        return {name: clean(svg) for name, svg in zip(specs, made, strict=True)}, ""
    except (ValueError, Unclean) as problem:
        return {}, f"the plotting process drew something else than plots: {problem}"
