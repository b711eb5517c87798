"""Measure subjects in turn, and write down what may be said of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from planish.bench.environment import environment, load, temperature
from planish.bench.process import Conditions, Key, Plan, Subject, Told
from planish.bench.schema import FORMAT, UNITS, VERSION, Bench, Method, Rate, Ratio, Row, Sustained, Tool, Window
from planish.bench.stats import LEAST, drift, summary
from planish.bench.subjects import entry, windows
from planish.bundle.surroundings import created, package_version
from planish.compiled import Progress
from planish_passes.errors import PlanishError

MOST = 26  # subjects: they have letters
_ALONE = "one after the other"
_TURNS = "in turn, every second round backwards"


@dataclass
class _Taken:
    """All rounds of one subject with one number of threads."""

    rounds: list[Told] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    left: list[float] = field(default_factory=list)
    uncold: int = 0


def bench(
    subjects: Sequence[Subject], plan: Plan, threads: Sequence[int], minutes: float, progress: Progress
) -> tuple[Bench, tuple[str, ...]]:
    """Measure; returns the file, and what could not be measured.

    Args:
        subjects: at most `MOST`; the first is what the others are held against.
        plan: how.
        threads: numbers of threads, one after the other.
        minutes: of a run without a pause, per subject; 0 = none.
        progress: where stages are told.

    Raises:
        PlanishError: a process broke.
    """
    if len(subjects) > MOST:
        hint = "choose some with -t, or give fewer bundles"
        raise PlanishError(f"{len(subjects)} artifacts are too many at once.", "BUNDLE", hint)
    before, names = (load(), temperature()), [chr(ord("A") + n) for n in range(len(subjects))]
    taken = {(name, count): _Taken() for count in threads for name in names}
    for count in threads:
        for number in range(plan.rounds):
            turn = list(zip(names, subjects, strict=True))
            for name, subject in turn if number % 2 == 0 else reversed(turn):
                progress.stage(f"round {number + 1} of {plan.rounds}", f"{name} {subject.target}, threads: {count}")
                _round(taken[name, count], subject, count, plan)
    runs = []
    if minutes:
        for name, subject in zip(names, subjects, strict=True):
            progress.stage("sustained", f"{name} {subject.target}, {minutes:g} minutes")
            runs.append(_sustained(name, subject, threads[0], minutes * 60, plan))
    first = {name: taken[name, threads[0]].rounds[0] for name in names}
    made = Bench(
        format=FORMAT,
        version=VERSION,
        created=created(),
        tool=Tool(name="planish", version=package_version("planish") or "unknown"),
        environment=environment(before),
        method=Method(
            rounds=plan.rounds,
            warmups=plan.warmups,
            calls=plan.calls,
            order=_TURNS if len(subjects) > 1 else _ALONE,
            clock="perf_counter of Python",
        ),
        subjects=tuple(entry(name, subject, first[name]) for name, subject in zip(names, subjects, strict=True)),
        rows=tuple(row for (name, count), told in taken.items() for row in _rows(name, count, told)),
        ratios=tuple(ratio for count in threads for ratio in _ratios(names, count, taken)),
        sustained=tuple(runs),
    )
    return made, tuple(_missing(taken))


def _round(taken: _Taken, subject: Subject, threads: int, plan: Plan) -> None:
    if plan.cold:
        seconds, left = subject.first_load(threads)
        taken.cold += [] if seconds is None else [seconds]
        taken.left += [] if left is None else [left]
        taken.uncold += seconds is None
    taken.rounds.append(subject.process(threads, plan))


def _rows(name: str, threads: int, taken: _Taken) -> list[Row]:
    made = []
    if len(taken.cold) >= LEAST:
        told: Conditions = {"page_cache": "dropped before", "resident_before": round(max(taken.left), 4)}
        made.append(_row(name, threads, ("load_cold", ""), taken.cold, None, told))
    for key in dict.fromkeys(key for one in taken.rounds for key in one.samples):
        samples = [s for one in taken.rounds for s in one.samples.get(key, ())]
        first = taken.rounds[0]
        made.append(_row(name, threads, key, samples, first.counts.get(key), first.conditions.get(key, {})))
    return made


def _row(
    name: str,
    threads: int,
    key: Key,
    samples: Sequence[float],
    count: int | None,
    conditions: Conditions,
) -> Row:
    found = summary(samples)
    rate = None if count is None else Rate(unit="tokens/s", value=count / found.median, count=count)
    return Row(
        subject=name,
        measure=key[0],  # type: ignore[arg-type]
        case=key[1],
        threads=threads,
        unit=UNITS.get(key[0], "s"),
        n=found.n,
        median=found.median,
        p95=found.p95,
        low=found.low,
        high=found.high,
        spread=found.spread,
        samples=tuple(float(s) for s in samples),
        rate=rate,
        conditions=dict(conditions),
    )


def _ratios(names: Sequence[str], threads: int, taken: Mapping[tuple[str, int], _Taken]) -> list[Ratio]:
    """Every other subject against the first, round by round."""
    made, base = [], taken[names[0], threads].rounds
    for name in names[1:]:
        others = taken[name, threads].rounds
        keys = dict.fromkeys(key for told in base for key in told.samples)
        for key in keys:
            pairs = [
                statistics.median(other.samples[key]) / statistics.median(one.samples[key])
                for one, other in zip(base, others, strict=True)
                if one.samples.get(key) and other.samples.get(key)
            ]
            if len(pairs) >= LEAST:
                made.append(
                    Ratio(
                        of=name,
                        to=names[0],
                        measure=key[0],  # type: ignore[arg-type]
                        case=key[1],
                        threads=threads,
                        pairs=len(pairs),
                        median=statistics.median(pairs),
                        low=min(pairs),
                        high=max(pairs),
                    )
                )
    return made


def _sustained(name: str, subject: Subject, threads: int, seconds: float, plan: Plan) -> Sustained:
    measure, case, course = subject.sustained(threads, seconds, plan)
    length = max(at + one for at, one in course)
    parts = windows(course, length)
    return Sustained(
        subject=name,
        measure=measure,  # type: ignore[arg-type]
        case=case,
        threads=threads,
        seconds=length,
        windows=tuple(Window(at=at, n=n, median=median) for at, n, median in parts),
        drift=drift([median for _, _, median in parts]),
    )


def _missing(taken: Mapping[tuple[str, int], _Taken]) -> list[str]:
    found = []
    for name in dict.fromkeys(name for name, _ in taken):
        own = [t for (n, _), t in taken.items() if n == name]
        if any(t.uncold for t in own):
            left = max((share for t in own for share in t.left), default=None)
            why = "this system does not tell" if left is None else f"{left:.0%} of its pages stayed in memory"
            found.append(f"{name}: cold load not measured: the page cache could not be emptied ({why})")
    return found
