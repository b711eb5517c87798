"""A console that shows what would steer a terminal.

Names in bundles and models are chosen by strangers: an escape sequence in one could rewrite the lines that tell of it,
and half a surrogate could not be written at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

# Controls but line feed and tab, lone surrogates, and marks that turn the direction of text around.
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


class HarmlessConsole(Console):
    """Characters that steer are written as escapes; styles of our own are not touched."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See rich; every piece of text goes through here."""
        for segment in super().render(renderable, options):
            if segment.control or _STEERING.search(segment.text) is None:
                yield segment
            else:
                yield Segment(harmless(segment.text), segment.style)


def harmless(text: str) -> str:
    """The text with steering characters spelled out, as in "\\x1b"."""
    return _STEERING.sub(lambda m: m[0].encode("unicode_escape").decode(), text)
