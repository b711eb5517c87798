"""Several bundles side by side; the first is what the others are held against."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from planish.bundle.part import Number
from planish.form import milliseconds, plain, size
from planish.report import accuracy, cards, placements, sizes, speeds, words
from planish.report.subject import Subject

NONE = "not measured"
ABSENT = "not in this bundle"


@dataclass(frozen=True)
class Cell:
    """One value.

    Args:
        text: in words.
        change: against the first bundle; empty where there is nothing to say.
        tone: "better", "worse" or "".
    """

    text: str
    change: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Row:
    """One thing in all bundles."""

    head: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """Rows about one subject.

    Args:
        id, short: of the section, and its name in the list of sections.
        note: what to know when reading it.
    """

    id: str
    short: str
    title: str
    note: str
    rows: tuple[Row, ...]


def tables(subjects: Sequence[Subject], value: Callable[[str, Number], str]) -> tuple[Table, ...]:
    """Everything that can be compared.

    Args:
        subjects: at least two.
        value: (name of a metric, number) -> text.
    """
    targets = list(dict.fromkeys(t for s in subjects for t in s.manifest.targets))
    return (
        Table("size", "Size", "Size", "Bytes of what an app ships.", _rows(targets, subjects, _bytes, _size)),
        Table(
            "quality",
            "Quantisation",
            "Did quantisation hurt?",
            "Each bundle against its own original model.",
            _gated(targets, subjects, ("quality",), value),
        ),
        Table(
            "lowering",
            "Lowering",
            "Did lowering break?",
            "Each artifact against its own quantised program.",
            _gated(targets, subjects, ("lowering", "decoding"), value),
        ),
        Table(
            "placement",
            "Placement",
            "Off the accelerator",
            "Operations that are expected to fall back.",
            _rows(targets, subjects, _fallbacks, lambda count: f"{count:,.0f}"),
        ),
        Table(
            "speed",
            "Speed",
            "Time of one call, while compiling",
            "Of the machine that compiled, in runs that were not taken in turn: small differences mean nothing. "
            "Measure bundles in turn with planish bench.",
            _times(targets, subjects),
        ),
        Table(
            "memory",
            "Memory",
            "Peak memory, while compiling",
            "Of the whole runner process, with Python and the runtime; once.",
            _rows(targets, subjects, _peak, _size, judge=False),
        ),
        Table("formats", "Bytes", "Bytes by format", "Of the weights of the shared program.", _formats(subjects)),
    )


def _rows(
    heads: Sequence[str],
    subjects: Sequence[Subject],
    read: Callable[[Subject, str], float | None],
    tell: Callable[[float], str],
    judge: bool = True,
) -> tuple[Row, ...]:
    return tuple(
        Row(
            head,
            tuple(
                cell if head in subject.manifest.targets else Cell(ABSENT)
                for cell, subject in zip(_cells([read(s, head) for s in subjects], tell, judge), subjects, strict=True)
            ),
        )
        for head in heads
    )


def _cells(values: Sequence[float | None], tell: Callable[[float], str], judge: bool) -> tuple[Cell, ...]:
    first = values[0]
    return tuple(
        Cell(NONE) if v is None else Cell(tell(v), *(_change(first, v, judge) if number else ("", "")))
        for number, v in enumerate(values)
    )


def _change(first: float | None, value: float, judge: bool) -> tuple[str, str]:
    if first is None or not (math.isfinite(first) and math.isfinite(value)):
        return "", ""
    if value == first:
        return "same", ""
    tone = "" if not judge else "better" if value < first else "worse"
    if not first:
        return "", tone
    ratio = value / first
    text = f"{ratio - 1:+.1%}".replace("-", "−").replace("%", " %") if 0.1 < ratio < 10 else f"{plain(ratio)} times"
    return text, tone


def _bytes(subject: Subject, target: str) -> float | None:
    entry = subject.manifest.targets.get(target)
    return None if entry is None or entry.artifact is None else entry.artifact.bytes


def _fallbacks(subject: Subject, target: str) -> float | None:
    placement = subject.report.of(target).placement
    if placement is None:
        return None
    found = placements.shares(placement)
    return None if found.unknown == found.total else found.fallback


def _peak(subject: Subject, target: str) -> float | None:
    speed = subject.report.of(target).speed
    return speed.peak_bytes if speed else None


def _size(count: float) -> str:
    return size(max(int(count), 0))


def _gated(
    targets: Sequence[str],
    subjects: Sequence[Subject],
    checks: tuple[str, ...],
    value: Callable[[str, Number], str],
) -> tuple[Row, ...]:
    rows = []
    for target in targets:
        found: list[Mapping[tuple[str, str], accuracy.Gate]] = []
        for subject in subjects:
            entry = subject.manifest.targets.get(target)
            gates = accuracy.gates(entry.verdicts, *checks) if entry else ()
            found.append({(g.check, g.metric.name): g for g in gates})
        for check, name in dict.fromkeys(key for gates in found for key in gates):
            cells = tuple(
                _gate(g.get((check, name)), value) if target in s.manifest.targets else Cell(ABSENT)
                for g, s in zip(found, subjects, strict=True)
            )
            rows.append(Row(f"{target}: {words.metric(name)}", cells))
    return tuple(rows)


def _gate(gate: accuracy.Gate | None, value: Callable[[str, Number], str]) -> Cell:
    if gate is None:
        return Cell(NONE)
    text = value(gate.metric.name, gate.metric.value)
    if not gate.ok:
        return Cell(text, "beyond its limit", "worse")
    return Cell(text, "" if gate.used is None else f"{gate.used:.0%} of its limit".replace("%", " %"))


def _times(targets: Sequence[str], subjects: Sequence[Subject]) -> tuple[Row, ...]:
    rows = []
    for target in targets:
        found: list[dict[str, speeds.Row]] = []
        for subject in subjects:
            speed = subject.report.of(target).speed
            found.append({f"{r.case}, {r.tokens} tokens": r for r in speeds.rows(speed)} if speed else {})
        # Only what all have: shapes differ between recipes and versions.
        for case in (c for c in found[0] if all(c in f for f in found[1:])):
            cells = _cells([f[case].median for f in found], milliseconds, judge=False)
            rows.append(Row(f"{target}: {case}", cells))
    return tuple(rows)


def _formats(subjects: Sequence[Subject]) -> tuple[Row, ...]:
    found = [{row.format: row.bytes for row in sizes.formats(s.report)} for s in subjects]
    names = dict.fromkeys(name for f in found for name in f)
    return tuple(Row(name, tuple(Cell(size(f[name]) if name in f else "none") for f in found)) for name in names)


@dataclass(frozen=True)
class Point:
    """Targets of one bundle that are of about the same size and accuracy.

    Args:
        number: of the bundle.
    """

    label: str
    bytes: int
    loss: float
    number: int


def points(subjects: Sequence[Subject]) -> tuple[str, tuple[Point, ...]]:
    """What a plot of size against loss shows: the metric in words, and its points."""
    found: dict[str, list[Point]] = {}
    for number, subject in enumerate(subjects):
        for target, entry in subject.manifest.targets.items():
            lost = accuracy.loss(entry.verdicts)
            if lost is not None and entry.artifact is not None:
                point = Point(f"{subject.label} {target}", entry.artifact.bytes, lost[1], number)
                found.setdefault(lost[0], []).append(point)
    name, most = max(found.items(), key=lambda item: len(item[1]), default=("", []))
    said = words.metric(name)
    return (f"1 − {said}" if name in ("cosine", "agreement") else said), _merged(most)


def _merged(found: Sequence[Point]) -> tuple[Point, ...]:
    merged: list[Point] = []
    for point in found:
        near = next((n for n, other in enumerate(merged) if _near(point, other)), None)
        if near is None:
            merged.append(point)
        else:
            label = f"{merged[near].label}, {point.label.partition(' ')[2]}"
            merged[near] = replace(merged[near], label=label)
    return tuple(merged)


def _near(one: Point, other: Point) -> bool:
    if one.number != other.number or abs(one.bytes - other.bytes) > 0.06 * other.bytes:
        return False
    losses = sorted((one.loss, other.loss))
    return losses[1] < 1.6 * losses[0] or losses[1] < 1e-6


def states(subjects: Sequence[Subject]) -> tuple[tuple[str, tuple[cards.Card | None, ...]], ...]:
    """Target -> its card in every bundle."""
    shown = [{card.target: card for card in cards.cards(s)} for s in subjects]
    return tuple((t, tuple(f.get(t) for f in shown)) for t in dict.fromkeys(t for f in shown for t in f))


def differences(subjects: Sequence[Subject]) -> tuple[Row, ...]:
    """What is not the same about how the bundles were made."""
    told = [_made(s) for s in subjects]
    keys = dict.fromkeys(k for t in told for k in t)
    rows = (Row(key, tuple(Cell(t.get(key, "–")) for t in told)) for key in keys)
    return tuple(row for row in rows if len({c.text for c in row.cells}) > 1)


def same_weights(subjects: Sequence[Subject]) -> bool:
    """True when all bundles were made from files with the same hashes."""
    return len({tuple(sorted(f.sha256 for f in s.manifest.source.files)) for s in subjects}) == 1


def _made(subject: Subject) -> dict[str, str]:
    manifest = subject.manifest
    return {
        "source": manifest.source.location,
        "commit": manifest.source.revision or "–",
        "architecture": manifest.source.architecture,
        "weights": subject.recipe,
        "planish": manifest.planish,
        "Python": manifest.tools.python,
        "platform": manifest.tools.platform,
        **dict(manifest.tools.packages),
        **{f"asked: {key}": value for key, value in subject.asked()},
    }
