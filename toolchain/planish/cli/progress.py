"""Progress on stderr: stage, elapsed time, peak memory. A live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from planish.cli.console import err

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

    from planish.compiled import Progress


def peak_memory() -> int | None:
    """Largest resident size of this process so far, in bytes; None on Windows without psutil."""
    if sys.platform == "win32":
        try:
            import psutil
        except ImportError:
            return None
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    # Not of children: what a fork shares with its parent counts as theirs.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def megabytes(size: int | None) -> str:
    """`812 MB`; a dash when unknown."""
    return "-" if size is None else f"{size / 1e6:.0f} MB"


class Lines:
    """One line when a stage begins, for logs."""

    def __init__(self, console: Console) -> None:
        self._console, self._began = console, time.monotonic()

    def stage(self, name: str, detail: str = "") -> None:
        """Print the time since the start, the peak memory until now, and the stage."""
        self._print(f"{time.monotonic() - self._began:7.1f} s {megabytes(peak_memory()):>9}  {name:<20} {detail}")

    def note(self, text: str) -> None:
        """Print it."""
        self._print(f"{'':19}  note: {text}")

    def close(self) -> None:
        """Print the last line."""
        self.stage("done")

    def _print(self, text: str) -> None:
        self._console.print(text.rstrip(), soft_wrap=True)


class Drawing:
    """A live line for the stage that runs; those that have ended stay above it."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._began = time.monotonic()
        self._name = self._detail = ""
        self._live: Live = Live(
            get_renderable=self._running,
            console=console,
            refresh_per_second=8,
            transient=True,
            redirect_stdout=False,
        )
        self._live.start()

    def stage(self, name: str, detail: str = "") -> None:
        """End the stage before, begin this one."""
        self._end()
        self._name, self._detail, self._began = name, detail, time.monotonic()

    def note(self, text: str) -> None:
        """Print it above the live line."""
        self._live.console.print(f"  note: {text}", style="dim", soft_wrap=True)

    def close(self) -> None:
        """End the last stage and take the live line away."""
        self._end()
        self._live.stop()

    def _end(self) -> None:
        if self._name:
            row, self._name = self._row("  ", "green"), ""
            self._live.console.print(row)

    def _running(self) -> RenderableType:
        from rich.spinner import Spinner
        from rich.table import Table

        if not self._name:
            return ""
        kind = "line" if self._live.console.options.ascii_only else "dots"
        grid = Table.grid()
        # A spinner begins to count when it is first drawn, and this one is drawn once.
        spinner = Spinner(kind, style="cyan")
        spinner.start_time = 0.0
        grid.add_row(spinner.render(time.monotonic()), self._row(" ", "bold cyan"))
        return grid

    def _row(self, indent: str, style: str) -> RenderableType:
        from rich.text import Text

        seconds = time.monotonic() - self._began
        numbers = f" {seconds:6.1f} s {megabytes(peak_memory()):>8}  "
        row = Text.assemble(indent, (f"{self._name:<20}", style), numbers, (self._detail, "dim"))
        row.no_wrap, row.overflow = True, "ellipsis"
        return row


class Quiet:
    """Says nothing."""

    def stage(self, name: str, detail: str = "") -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """Progress for the time of the block; the terminal is as it was afterwards, also after an exception."""
    console = err()
    shown: Lines | Drawing | Quiet
    shown = Quiet() if quiet else Drawing(console) if console.is_terminal else Lines(console)
    try:
        yield shown
    except BaseException:
        if isinstance(shown, Drawing):
            shown.close()
        raise
    shown.close()
