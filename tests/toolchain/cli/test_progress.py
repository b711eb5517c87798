"""Progress: plain lines, and the live line on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from planish.cli.progress import Drawing, Lines, peak_memory, progress


def test_peak_memory_is_in_bytes() -> None:
    peak = peak_memory()
    assert peak is not None
    assert 10e6 < peak < 1e12


def test_lines() -> None:
    console = Console(file=io.StringIO(), width=40)
    lines = Lines(console)
    lines.stage("capture", "BertModel " * 5)
    lines.close()
    written = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(written) == 2
    assert written[0].split()[1::2][:2] == ["s", "MB"]
    assert "capture" in written[0]


def test_drawing_keeps_finished_stages() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=60)
    drawing = Drawing(console)
    drawing.stage("capture", "a very long detail that does not fit into sixty columns at all")
    drawing.note("half way")
    drawing.stage("lower")
    drawing.close()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "half way" in text
    assert text.index("capture") < text.index("lower")
    assert text.rstrip().endswith("\x1b[2K") or "\x1b[?25h" in text  # the cursor is shown again


def test_terminal_is_restored_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr("planish.cli.progress.err", lambda: console)

    def interrupted() -> None:
        with progress(quiet=False) as shown:
            shown.stage("capture")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert console.file.getvalue().rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in console.file.getvalue()  # type: ignore[attr-defined]


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(quiet=True) as shown:
        shown.stage("capture")
        shown.note("x")
    assert capsys.readouterr().err == ""
