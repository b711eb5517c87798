"""Numbers and words of the verdict table."""

from __future__ import annotations

from pathlib import Path

import pytest

from planish.cli.results import evidence, timed_case, verdict_table, verdict_word
from planish.compiled import TargetResult
from planish.form import cosine, milliseconds, size
from planish.verdict import Failed, Metric, NotRun, Passed, Verdict
from planish_targets.contract import Artifact, Evidence

ARTIFACT = Artifact("t", Path(), "f")
QUALITY = Passed("quality", Evidence.EXECUTED)
WEIGHTS = Passed("weights", Evidence.EXECUTED)


def test_cosine_is_never_rounded_up() -> None:
    assert [cosine(v) for v in (0.9999999, 1.0, 0.5, None, float("nan"))] == [
        "0.99999",
        "1.00000",
        "0.50000",
        "-",
        "nan",
    ]


def test_sizes_and_times() -> None:
    assert [size(n) for n in (0, 999, 1000, 23_100_000, 999_900_000, 7_000_000_000)] == [
        "0 B", "999 B", "1.0 kB", "23.1 MB", "1.0 GB", "7.0 GB"
    ]  # fmt: skip
    assert [milliseconds(s) for s in (0.0042, 0.26, 1.5, None)] == ["4.2 ms", "260 ms", "1.5 s", "-"]


@pytest.mark.parametrize(
    ("artifact", "verdicts", "grade", "word"),
    [
        (ARTIFACT, (QUALITY, Passed("lowering", Evidence.EMULATED)), Evidence.EMULATED, "passed"),
        (ARTIFACT, (QUALITY, Failed("lowering", Evidence.EXECUTED, "x")), Evidence.EXECUTED, "FAILED"),
        # A check of the program says nothing of an artifact that did not run.
        (ARTIFACT, (QUALITY, NotRun("lowering", "x")), Evidence.NOT_RUN, "not run"),
        (ARTIFACT, (QUALITY, WEIGHTS, NotRun("lowering", "x")), Evidence.STRUCTURAL, "not run"),
        (None, (Failed("lower", Evidence.STRUCTURAL, "x"),), Evidence.NOT_RUN, "refused"),
    ],
)
def test_grades(artifact: Artifact | None, verdicts: tuple[Verdict, ...], grade: Evidence, word: str) -> None:
    result = TargetResult("t", artifact, verdicts)
    assert (evidence(result), verdict_word(result)) == (grade, word)


def test_the_longest_grade_leaves_room_for_the_verdict() -> None:
    from rich.console import Console

    gate, far = (Metric("max_abs", 0.088), Metric("cosine", 0.998)), (Metric("cosine", 0.998), Metric("max_abs", 0.19))
    checks = (Passed("quality", Evidence.EXECUTED, far), Passed("lowering", Evidence.EXECUTED_ARM64_EMULATED, gate))
    console = Console(width=80)
    with console.capture() as told:
        console.print(verdict_table([TargetResult("executorch", ARTIFACT, checks)], {"executorch": 22_900_000}))
    words = told.get().split()
    assert "passed" in words
    assert "".join(w for w in words if w in ("executed-", "arm64-", "emulated")) == "executed-arm64-emulated"


def test_timed_case_is_one_that_all_ran() -> None:
    one = TargetResult("a", ARTIFACT, (), latency={"x": 1.0, "y": 2.0, "z": 9.0})
    other = TargetResult("b", ARTIFACT, (), latency={"x": 5.0, "y": 1.0})
    assert timed_case([one, other]) == "y"
    assert timed_case([]) == ""
