"""The command line: `planish`."""

from __future__ import annotations

import atexit
import gc
import os


def main() -> None:
    """Entry point of the `planish` script."""
    # Graphs are many long-lived objects: with the default threshold a tenth of a compile goes into looking at them.
    gc.set_threshold(100_000, 20, 20)
    atexit.register(gc.freeze)  # and seconds into looking at them again, at the end, when all of it goes anyway
    # Threads of torch that wait for each other shall sleep: most of a compile is one thread's work.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from planish.cli.app import app

    app()
