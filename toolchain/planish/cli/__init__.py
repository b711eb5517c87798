"""The command line: `planish`."""

from __future__ import annotations

import gc


def main() -> None:
    """Entry point of the `planish` script."""
    # Graphs are many long-lived objects: with the default threshold a tenth of a compile goes into looking at them.
    gc.set_threshold(100_000, 20, 20)
    from planish.cli.app import app

    app()
