"""What planish bench measured, here and on devices, as rows; each file with who stands behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planish.bench.schema import Row, SubjectEntry, Sustained
from planish.bench.store import Stored
from planish.form import milliseconds, size
from planish.report.subject import Subject
from planish.report.words import MEASURES


@dataclass(frozen=True)
class Line:
    """One row in words."""

    what: str
    case: str
    threads: int
    median: str
    p95: str
    range: str
    n: int
    rate: str


@dataclass(frozen=True)
class Block:
    """One artifact in one file of measurements."""

    subject: SubjectEntry
    lines: tuple[Line, ...]
    sustained: tuple[Sustained, ...]


@dataclass(frozen=True)
class Pair:
    """Two bundles that were measured in turn.

    Args:
        sides: labels of the bundles, with their targets.
    """

    sides: str
    what: str
    median: float
    low: float
    high: float
    pairs: int
    by: Stored


def blocks(stored: Stored, subject: Subject) -> tuple[Block, ...]:
    """What a file says of this bundle."""
    bench = stored.bench
    return tuple(
        Block(
            own,
            tuple(_line(row) for row in bench.rows if row.subject == own.id),
            tuple(run for run in bench.sustained if run.subject == own.id),
        )
        for own in bench.subjects
        if own.seal == subject.manifest.sha256
    )


def pairs(subjects: Sequence[Subject]) -> tuple[Pair, ...]:
    """Ratios between the bundles of a comparison; of a file that several bundles hold, once."""
    labels = {s.manifest.sha256: s.label for s in subjects}
    files = {stored.name: stored for s in subjects for stored in s.measurements}
    found = []
    for stored in files.values():
        named = {e.id: f"{labels[e.seal]} {e.target}" for e in stored.bench.subjects if e.seal in labels}
        for ratio in stored.bench.ratios:
            if ratio.of in named and ratio.to in named:
                what = f"{MEASURES[ratio.measure]}{f', {ratio.case}' if ratio.case else ''}, threads: {ratio.threads}"
                sides = f"{named[ratio.of]} to {named[ratio.to]}"
                found.append(Pair(sides, what, ratio.median, ratio.low, ratio.high, ratio.pairs, stored))
    return tuple(found)


def _line(row: Row) -> Line:
    def shown(value: float) -> str:
        return size(int(value)) if row.unit == "bytes" else milliseconds(value)

    tokens = row.conditions.get("tokens")
    case = f"{row.case}, {tokens} tokens" if tokens is not None else row.case
    return Line(
        MEASURES[row.measure],
        case,
        row.threads,
        shown(row.median),
        "–" if row.p95 is None else shown(row.p95),
        f"{shown(row.low)} to {shown(row.high)}",
        row.n,
        "" if row.rate is None else f"{row.rate.value:,.1f} tokens/s",
    )
