from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.bench.stats import ENOUGH, drift, summary


def test_a_summary() -> None:
    found = summary([3.0, 1.0, 2.0])
    assert (found.n, found.median, found.low, found.high, found.spread, found.p95) == (3, 2.0, 1.0, 3.0, 1.0, None)
    assert summary([float(n) for n in range(1, 102)]).p95 == 96.0


def test_nothing_is_no_measurement() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        summary([])


@given(st.lists(st.floats(1e-6, 1e3), min_size=ENOUGH, max_size=60))
def test_percentiles_are_those_of_the_standard_library(samples: list[float]) -> None:
    found, cuts = summary(samples), statistics.quantiles(samples, n=20, method="inclusive")
    assert found.p95 == pytest.approx(cuts[18])
    assert found.spread == pytest.approx(cuts[14] - cuts[4], abs=1e-9)
    assert found.low <= found.median <= found.p95 <= found.high  # type: ignore[operator]


@pytest.mark.parametrize(
    ("medians", "drifted"),
    [([1.0, 9.0, 9.0, 1.1], 0.1), ([2.0, 1.0], -0.5), ([1.0], 0.0), ([1.0, 1.0, 5.0, 5.0, 5.0, 5.0, 2.0, 2.0], 1.0)],
)
def test_drift(medians: list[float], drifted: float) -> None:
    assert drift(medians) == pytest.approx(drifted)
