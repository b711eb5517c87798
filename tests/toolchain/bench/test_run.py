"""Subjects take turns; rows and ratios are what the rounds said, and the file never contradicts itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from planish.bench.lint import lint_bench
from planish.bench.process import Plan, Told, load_and_memory
from planish.bench.run import bench
from planish.bench.subjects import windows
from planish.compiled import Silent
from planish_passes.errors import PlanishError
from planish_targets.contract import Evidence

SEEN: list[tuple[str, int]] = []
SLOW = [1.0, 1.2, 5.0, 1.1]  # a machine with one bad moment: of each round, how slow it was


@dataclass
class Fake:
    """Needs `base` seconds for a call, more when the machine is slow."""

    base: float
    target: str = "onnxruntime"
    cold: bool = True
    rounds: int = 0
    bundle: Any = field(default=None)

    def __post_init__(self) -> None:
        artifact = SimpleNamespace(sha256="b" * 64, bytes=10)
        told = {"name": f"m{self.base:g}", "sha256": "a" * 64, "recipe": SimpleNamespace(name="int8")}
        entries = {self.target: SimpleNamespace(artifact=artifact)}
        self.bundle = SimpleNamespace(manifest=SimpleNamespace(**told, targets=entries))

    def process(self, threads: int, plan: Plan) -> Told:
        SEEN.append((self.bundle.manifest.name, threads))
        now = self.base * SLOW[self.rounds] / threads
        self.rounds += 1
        calls = [now * (1 + 0.01 * n) for n in range(plan.calls)]
        samples = {("latency", "short"): calls, ("prefill", ""): [100 * now], ("peak_memory", ""): [1e8]}
        return Told(samples, {("prefill", ""): 64}, {}, "Fake CPU", {"fake": "1"}, Evidence.EXECUTED)

    def first_load(self, threads: int) -> tuple[float | None, float | None]:
        return (self.base * (9 + self.rounds), 0.0) if self.cold else (None, 0.4)

    def sustained(self, threads: int, seconds: float, plan: Plan) -> tuple[str, str, list[tuple[float, float]]]:
        at, course = 0.0, []
        while at < seconds:
            one = self.base * (1 + at / seconds)
            course.append((at, one))
            at += one
        return "latency", "short", course


def run(*subjects: Fake, threads: tuple[int, ...] = (1,), minutes: float = 0.0) -> Any:
    SEEN.clear()
    return bench(subjects, Plan(4, 1, 6), threads, minutes, Silent())


def test_they_take_turns_and_every_second_round_is_backwards() -> None:
    run(Fake(0.1), Fake(0.2))
    assert [name for name, _ in SEEN] == ["m0.1", "m0.2", "m0.2", "m0.1"] * 2


def test_a_bad_moment_does_not_touch_ratios() -> None:
    made, missing = run(Fake(0.1), Fake(0.2))
    ratio = next(r for r in made.ratios if r.measure == "latency")
    assert (ratio.of, ratio.to, ratio.pairs) == ("B", "A", 4)
    assert ratio.median == pytest.approx(2.0)
    assert ratio.high == pytest.approx(ratio.low)
    assert missing == ()


def test_rows_hold_all_samples_and_contradict_nothing() -> None:
    made, _ = run(Fake(0.1), Fake(0.2), minutes=1.0)
    latency = next(r for r in made.rows if (r.subject, r.measure) == ("A", "latency"))
    assert (latency.n, latency.unit, latency.case) == (24, "s", "short")
    assert latency.p95 is not None
    prefill = next(r for r in made.rows if (r.subject, r.measure) == ("A", "prefill"))
    assert prefill.p95 is None
    assert prefill.rate is not None
    assert prefill.rate.value * prefill.median == pytest.approx(64)
    assert [s.drift > 0.5 for s in made.sustained] == [True, True]
    assert lint_bench(made) == []


def test_threads_are_rows_of_their_own() -> None:
    subject = Fake(0.1)
    subject.rounds = -4  # each number of threads begins anew
    made, _ = run(subject, threads=(1, 2))
    assert {r.threads for r in made.rows} == {1, 2}
    assert [count for _, count in SEEN] == [1] * 4 + [2] * 4


def test_a_load_that_was_not_cold_is_not_called_cold() -> None:
    made, missing = run(Fake(0.1, cold=False))
    assert "load_cold" not in {r.measure for r in made.rows}
    assert missing == (
        "A: cold load not measured: the page cache could not be emptied (40% of its pages stayed in memory)",
    )
    made, _ = run(Fake(0.1))
    assert next(r for r in made.rows if r.measure == "load_cold").conditions["page_cache"] == "dropped before"


def test_cold_loads_can_be_left_out() -> None:
    made, missing = bench([Fake(0.1)], Plan(4, 1, 6, cold=False), (1,), 0.0, Silent())
    assert "load_cold" not in {r.measure for r in made.rows}
    assert missing == ()


def test_too_many() -> None:
    with pytest.raises(PlanishError, match="27 artifacts are too many"):
        run(*[Fake(0.1)] * 27)


def test_what_a_process_does_not_tell_is_left_out() -> None:
    assert load_and_memory(0.5, 300, 100) == {
        ("load_warm", ""): [0.5],
        ("peak_memory", ""): [300.0],
        ("artifact_memory", ""): [200.0],
    }
    assert load_and_memory(None, None, None) == {}
    assert load_and_memory(0.0, 300, 400) == {("peak_memory", ""): [300.0]}


def test_windows() -> None:
    course = [(0.0, 1.0), (1.0, 3.0), (9.5, 2.0)]
    assert windows(course, 10.0, 5) == [(0.0, 2, 2.0), (8.0, 1, 2.0)]
