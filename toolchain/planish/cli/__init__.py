"""The command line: `planish`."""

from __future__ import annotations


def main() -> None:
    """Entry point of the `planish` script."""
    from planish.cli.app import app

    app()
