"""Verdicts through JSON and back."""

from __future__ import annotations

import json
import math

import pytest

from planish.bundle import verdict_from_json, verdict_to_json
from planish.verdict import Divergence, Failed, Metric, NotRun, Passed, Verdict
from planish_passes.errors import PlanishError
from planish_targets.contract import Evidence

ODD = (float("inf"), float("-inf"), 1e-300, 0.1, 3)


@pytest.mark.parametrize(
    "verdict",
    [
        Passed("quality", Evidence.EXECUTED, tuple(Metric("m", v, v, at_most=False, case="c") for v in ODD), "CPU"),
        Passed("plain", Evidence.STRUCTURAL),
        Failed("lowering", Evidence.EMULATED, "why", (Metric("m", 1.0),), "d", Divergence("n", "o", "m", math.inf)),
        Failed("lowering", Evidence.EXECUTED, "why"),
        Passed("lowering", Evidence.EXECUTED_ARM64_EMULATED, (), "emulated by QEMU"),
        NotRun("native", "no Mac here"),
    ],
)
def test_round_trip(verdict: Verdict) -> None:
    text = json.dumps(verdict_to_json(verdict), allow_nan=False)
    assert verdict_from_json(json.loads(text)) == verdict


def test_nan() -> None:
    made = verdict_to_json(Passed("c", Evidence.EXECUTED, (Metric("m", float("nan"), float("nan")),)))
    back = verdict_from_json(made)
    assert isinstance(back, Passed)
    assert math.isnan(back.metrics[0].value)
    assert not back.metrics[0].ok


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"result": "maybe"}, ""),
        ({"evidence": "guessed"}, "passed.evidence"),
        ({"surprise": 1}, "passed.surprise"),
        ({"metrics": [{"name": "m"}]}, "passed.metrics.0.value"),
        ({"device": 3}, "passed.device"),
    ],
)
def test_what_is_no_verdict_is_refused(change: dict[str, object], key: str) -> None:
    data = {**verdict_to_json(Passed("c", Evidence.EXECUTED)), **change}
    with pytest.raises(PlanishError, match="not a verdict") as caught:
        verdict_from_json(data)  # type: ignore[arg-type]
    assert caught.value.where == key
