"""Time and memory of the checked run, as rows."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from planish.report.subject import Speed, Subject


@dataclass(frozen=True)
class Row:
    """One golden case, or several of one shape.

    Args:
        tokens: that one call reads; None where the model reads none.
        median, low, high: seconds of one call.
        count: calls.
    """

    case: str
    tokens: int | None
    median: float
    low: float
    high: float
    count: int

    @property
    def rate(self) -> float | None:
        """Tokens per second at the median."""
        return self.tokens / self.median if self.tokens and self.median > 0 else None


def rows(speed: Speed) -> tuple[Row, ...]:
    """Cases in the order they ran; those that are samples of one shape (`sample0`, `sample1`) are one row."""
    found: dict[tuple[str, int | None], list[str]] = {}
    for case in speed.seconds:
        found.setdefault((case.rstrip("0123456789"), speed.tokens.get(case)), []).append(case)
    made = (_row(cases, tokens, speed) for (_, tokens), cases in found.items())
    return tuple(row for row in made if row is not None)


def _row(cases: list[str], tokens: int | None, speed: Speed) -> Row | None:
    timed = [s for case in cases for s in speed.seconds[case] if math.isfinite(s) and s >= 0]
    if not timed:
        return None
    name = cases[0] if len(cases) == 1 else f"{cases[0]} to {cases[-1]}"
    return Row(name, tokens, statistics.median(timed), min(timed), max(timed), len(timed))


def headline(subject: Subject, target: str) -> tuple[str, Row] | None:
    """("latency" or "decode", row): what a card tells. The longest call; of a language model, a call with one token."""
    speed = subject.report.of(target).speed
    found = rows(speed) if speed else ()
    if not found:
        return None
    decode = next((row for row in found if row.case == "token"), None)
    if decode is not None and decode.tokens == 1:
        return "decode", decode
    return "latency", max(found, key=lambda row: row.median)
