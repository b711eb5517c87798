"""Every way in which a table has lied is found, and a table that does not lie passes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from measurements import bench, row

from planish.bench.lint import lint

Json = dict[str, Any]


def problems(change: Callable[[Json], object] = bool) -> list[str]:
    data = bench()
    change(data)
    return [f"{p.where}: {p.what}" for p in lint(json.dumps(data).encode())]


def test_what_is_true_passes() -> None:
    assert problems() == []


def test_samples_may_be_left_out() -> None:
    def without(data: Json) -> None:
        for one in data["rows"]:
            one["samples"] = None

    assert problems(without) == []


def change_row(number: int, **values: Any) -> Callable[[Json], object]:
    return lambda data: data["rows"][number].update(values)


def copied(data: Json) -> None:
    data["rows"][1] = {**copy.deepcopy(data["rows"][0]), "subject": "B"}
    data["ratios"] = []


def twice(data: Json) -> None:
    data["rows"].append(row("A", "latency", [0.02, 0.03, 0.04], "short"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        # rates that contradict times
        (lambda d: d["rows"][2]["rate"].update(value=500.0), "500 tokens/s for 0.51 s are 255 tokens, not 128"),
        (change_row(2, rate=None), "prefill without its tokens"),
        (change_row(4, rate={"unit": "tokens/s", "value": 1e-6, "count": 300}), "tokens per second of bytes"),
        # duplicated rows
        (copied, "rows.1: number for number the values of row 0: a copy."),
        (twice, "rows.6: the same thing as row 0: a row too many."),
        # units
        (lambda d: d["rows"][0].pop("unit"), "rows.0.unit: Field required"),
        (change_row(0, unit="ms"), "rows.0.unit: Input should be 's' or 'bytes'"),
        (change_row(0, unit="bytes"), "latency is in s, not in bytes"),
        (lambda d: d["rows"][2]["rate"].update(unit="token/s"), "rows.2.rate.unit"),
        # few samples
        (lambda d: d["rows"].append(row("B", "load_warm", [0.3])), "rows.6: n = 1: that is an anecdote"),
        (change_row(0, p95=0.0124), "a 95th percentile of 4 samples is their largest one; 20 are needed"),
        # numbers that do not follow from the samples
        (change_row(0, n=40), "n = 40, but there are 4 samples"),
        (change_row(0, median=0.0101), "median is 0.0101, but that of the samples is 0.0115"),
        (change_row(3, p95=0.0121), "p95 is 0.0121, but that of the samples is 0.012185"),
        (change_row(0, spread=0.0001), "spread is 0.0001, but that of the samples"),
        (change_row(0, samples=None, spread=0.5), "the quartiles are further apart"),
        (change_row(0, samples=None, high=0.011), "low, median, p95 and high are not in this order"),
        (lambda d: d["rows"][0]["samples"].__setitem__(0, 0.0), "a sample is not above zero"),
        (change_row(0, median="NaN"), "rows.0.median"),
        # ratios
        (lambda d: d["ratios"][0].update(median=0.5, low=0.4), "the ratio is 0.5, but that of the two medians 1.93478"),
        (lambda d: d["ratios"][0].update(pairs=1), "1 pairs: measure at least 3 times in turn"),
        (lambda d: d["ratios"][0].update(of="A"), "A is compared with itself"),
        (lambda d: d["ratios"][0].update(case="long"), "a ratio of something that was not measured"),
        (lambda d: d["ratios"][0].update(low=2.0), "ratios.0: low, median and high are not in this order"),
        # long runs
        (lambda d: d["sustained"][0].update(drift=0.0), "drift is +0.000, but that of the windows is +0.300"),
        (lambda d: d["sustained"][0]["windows"][1].update(n=1000), "1000 calls of 0.11 s do not fit into 15 s"),
        (lambda d: d["sustained"][0]["windows"][1].update(at=0.0), "its windows are not in order"),
        (lambda d: d["sustained"][0].update(windows=[]), "0 windows show no drift"),
        # what a figure is worth nothing without
        (lambda d: d["subjects"][0].update(versions={}), "subjects.A: no version of the runtime"),
        (lambda d: d["environment"].pop("thermal"), "environment.thermal: Field required"),
        (lambda d: d["environment"].pop("energy"), "environment.energy: Field required"),
        (lambda d: d["environment"].update(device=""), "environment.device"),
        (lambda d: d["rows"][0].update(subject="Z"), "rows: Z is no subject of this file"),
        (lambda d: d["subjects"].append(d["subjects"][0]), "A is there 2 times"),
        (lambda d: d.update(rows=[], ratios=[]), "nothing was measured"),
        (lambda d: d.update(score=9000), "score: Extra inputs are not permitted"),
    ],
)  # fmt: skip
def test_what_is_not_true_is_found(change: Callable[[Json], object], says: str) -> None:
    found = problems(change)
    assert any(says in problem for problem in found), found


def test_equal_sizes_are_no_copies() -> None:
    assert not [p for p in problems() if "rows.5" in p]


def test_no_json() -> None:
    assert [p.where for p in lint(b"tokens/s: 5000")] == ["the file"]
