"""What strangers wrote into a bundle cannot steer the terminal."""

from __future__ import annotations

import io

import pytest
from rich.table import Table
from rich.text import Text

from planish.cli.guard import Told, tell
from planish.cli.harmless import HarmlessConsole, harmless


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢\tx", "plain é 漢\tx"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\rb\x7f\x9b", "a\\rb\\x7f\\x9b"),
        ("\ud800", "\\ud800"),
        ("\u202egnp", "\\u202egnp"),
    ],
)
def test_escapes(text: str, shown: str) -> None:
    assert harmless(text) == shown


def test_every_way_to_print() -> None:
    file = io.StringIO()
    console = HarmlessConsole(
        file=file, width=80, color_system="standard", force_terminal=True, markup=False, highlight=False
    )
    table = Table("head\x1b[1m")
    table.add_row(Text("cell\x1b[2J", "red"))
    for thing in ("line\x1b[3J", Text("text\x1b[4J", "bold"), table):
        console.print(thing)
    told = file.getvalue()
    assert "line\\x1b[3J" in told
    assert "text\\x1b[4J" in told
    assert "cell\\x1" in told  # a table cuts what it counted as nothing
    assert "\x1b[1m" in told  # our own style
    assert not any(f"\x1b{mark}" in told for mark in ("[2J", "[3J", "[4J"))


def test_errors(capfd: pytest.CaptureFixture[str]) -> None:
    tell(Told("bad \ud800 name\x1b]0;x", "where\x1b[A", "hint"))
    told = capfd.readouterr().err
    assert "error: bad \\ud800 name\\x1b]0;x" in told
    assert "\x1b" not in told
