"""One compile as a process, which ends when the build that asked for it ends: `python -m planish.matrix.child`."""

from __future__ import annotations

import os
import signal
import threading


def main() -> None:
    """The command line, with its standard input as the thread that it hangs by."""
    threading.Thread(target=_watch, daemon=True).start()
    from planish.cli import main as cli

    cli()


def _watch() -> None:
    # The build holds the other end of the pipe and never writes: it ends when the build does, however that ended.
    while os.read(0, 1):
        continue
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
