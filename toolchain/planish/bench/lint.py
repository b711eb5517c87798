"""What makes a file of measurements unbelievable. Every rule has caught a published table; see docs/bench.md."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from planish.bench.schema import UNITS, Bench, Ratio, Row, Sustained, faults
from planish.bench.stats import ENOUGH, LEAST, drift, summary

_RATE, _SAME = 0.01, 1e-6  # relative: rates are rounded for people; what is computed again is not
_RATIO = math.log(1.5)  # a median of ratios and a ratio of medians may differ by this much


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Args:
        where: row or key.
        what: in a sentence.
    """

    where: str
    what: str


def lint(data: bytes) -> list[Problem]:
    """Everything that is wrong with a file, in its order; [] when nothing is."""
    try:
        bench = Bench.model_validate_json(data)
    except ValidationError as problem:
        return [Problem(key, f"{what}.") for key, what in faults(problem)]
    return lint_bench(bench)


def lint_bench(bench: Bench) -> list[Problem]:
    """The same of a file that has the right form."""
    return [
        *_subjects(bench),
        *(problem for number, row in enumerate(bench.rows) for problem in _row(f"rows.{number}", row)),
        *_twice(bench.rows),
        *(problem for number, ratio in enumerate(bench.ratios) for problem in _ratio(f"ratios.{number}", ratio, bench)),
        *(problem for number, run in enumerate(bench.sustained) for problem in _run(f"sustained.{number}", run)),
    ]


def _subjects(bench: Bench) -> Iterator[Problem]:
    known = Counter(s.id for s in bench.subjects)
    yield from (Problem("subjects", f"{name} is there {count} times.") for name, count in known.items() if count > 1)
    for subject in bench.subjects:
        if not subject.versions:
            yield Problem(f"subjects.{subject.id}", "no version of the runtime: nobody can measure it again.")
    if not bench.rows:
        yield Problem("rows", "nothing was measured.")
    used = {r.subject for r in bench.rows} | {r.subject for r in bench.sustained}
    used |= {name for r in bench.ratios for name in (r.of, r.to)}
    yield from (Problem("rows", f"{name} is no subject of this file.") for name in sorted(used - set(known)))


def _row(where: str, row: Row) -> Iterator[Problem]:
    if row.n < LEAST:
        yield Problem(where, f"n = {row.n}: that is an anecdote; measure at least {LEAST} times.")
    if row.unit != UNITS.get(row.measure, "s"):
        yield Problem(where, f"{row.measure} is in {UNITS.get(row.measure, 's')}, not in {row.unit}.")
    if row.p95 is not None and row.n < ENOUGH:
        yield Problem(where, f"a 95th percentile of {row.n} samples is their largest one; {ENOUGH} are needed.")
    ordered = [v for v in (row.low, row.median, row.p95, row.high) if v is not None]
    if ordered != sorted(ordered):
        yield Problem(where, "low, median, p95 and high are not in this order.")
    if row.spread > (row.high - row.low) * (1 + _SAME):
        yield Problem(where, "the quartiles are further apart than the smallest and the largest sample.")
    if row.rate is not None:
        yield from _rate(where, row)
    elif row.measure in ("prefill", "decode"):
        yield Problem(where, f"{row.measure} without its tokens: a time alone says nothing.")
    if row.samples is not None:
        yield from _samples(where, row, row.samples)


def _rate(where: str, row: Row) -> Iterator[Problem]:
    assert row.rate is not None
    if row.unit != "s":
        yield Problem(where, f"tokens per second of {row.unit}.")
    told = row.rate.value * row.median
    if abs(told - row.rate.count) > _RATE * row.rate.count:
        text = f"{row.rate.value:g} tokens/s for {row.median:g} s are {told:g} tokens, not {row.rate.count}."
        yield Problem(where, f"rate and time contradict each other: {text}")


def _samples(where: str, row: Row, samples: tuple[float, ...]) -> Iterator[Problem]:
    if len(samples) != row.n:
        yield Problem(where, f"n = {row.n}, but there are {len(samples)} samples.")
    if any(s <= 0 for s in samples):
        yield Problem(where, "a sample is not above zero.")
    if not samples:
        return
    found = summary(samples)
    for name in ("median", "p95", "low", "high", "spread"):
        said, computed = getattr(row, name), getattr(found, name)
        if said is not None and computed is not None and abs(said - computed) > _SAME * max(abs(computed), 1e-12):
            yield Problem(where, f"{name} is {said:g}, but that of the samples is {computed:g}.")


def _twice(rows: Iterable[Row]) -> Iterator[Problem]:
    named: dict[tuple[object, ...], int] = {}
    values: dict[tuple[object, ...], int] = {}
    for number, row in enumerate(rows):
        first = named.setdefault((row.subject, row.measure, row.case, row.threads), number)
        if first != number:
            yield Problem(f"rows.{number}", f"the same thing as row {first}: a row too many.")
            continue
        # Clocks tick in nanoseconds: equal times of two things are copies. Sizes come in pages, and may be equal.
        if row.unit == "s" and row.low != row.high:
            same = row.samples or (row.median, row.low, row.high, row.spread)
            first = values.setdefault((same, row.n), number)
            if first != number:
                yield Problem(f"rows.{number}", f"number for number the values of row {first}: a copy.")


def _ratio(where: str, ratio: Ratio, bench: Bench) -> Iterator[Problem]:
    if ratio.pairs < LEAST:
        yield Problem(where, f"{ratio.pairs} pairs: measure at least {LEAST} times in turn.")
    if not ratio.low <= ratio.median <= ratio.high:
        yield Problem(where, "low, median and high are not in this order.")
    if ratio.of == ratio.to:
        yield Problem(where, f"{ratio.of} is compared with itself.")
    key = (ratio.measure, ratio.case, ratio.threads)
    found = {r.subject: r for r in bench.rows if (r.measure, r.case, r.threads) == key}
    if ratio.of not in found or ratio.to not in found:
        yield Problem(where, "a ratio of something that was not measured.")
        return
    told = found[ratio.of].median / found[ratio.to].median
    if abs(math.log(ratio.median / told)) > _RATIO:
        yield Problem(where, f"the ratio is {ratio.median:g}, but that of the two medians {told:g}.")


def _run(where: str, run: Sustained) -> Iterator[Problem]:
    if len(run.windows) < LEAST:
        yield Problem(where, f"{len(run.windows)} windows show no drift; {LEAST} are needed.")
        return
    starts = [w.at for w in run.windows]
    if starts != sorted(set(starts)):
        yield Problem(where, "its windows are not in order.")
    for number, window in enumerate(run.windows):
        end = starts[number + 1] if number + 1 < len(starts) else run.seconds
        # Half of the calls of a window are as long as its median, or longer.
        if window.n * window.median / 2 > (end - window.at) * (1 + _RATE):
            text = f"{window.n} calls of {window.median:g} s do not fit into {end - window.at:g} s."
            yield Problem(f"{where}.windows.{number}", text)
    computed = drift([w.median for w in run.windows])
    if abs(computed - run.drift) > 1e-3:
        yield Problem(where, f"drift is {run.drift:+.3f}, but that of the windows is {computed:+.3f}.")
