"""From samples to what may be said of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

ENOUGH = 20  # samples from which on a 95th percentile is more than the largest one
LEAST = 3  # samples below which nothing is claimed


@dataclass(frozen=True)
class Summary:
    """What is said of samples.

    Args:
        p95: None with less than `ENOUGH`.
        spread: distance of the quartiles.
    """

    n: int
    median: float
    p95: float | None
    low: float
    high: float
    spread: float


def summary(samples: Sequence[float]) -> Summary:
    """Of at least one sample; percentiles interpolate between neighbours, ends included.

    Raises:
        ValueError: there is none.
    """
    if not samples:
        raise ValueError("nothing was measured")
    ordered = sorted(samples)
    p95 = percentile(ordered, 0.95) if len(ordered) >= ENOUGH else None
    spread = percentile(ordered, 0.75) - percentile(ordered, 0.25)
    return Summary(len(ordered), statistics.median(ordered), p95, ordered[0], ordered[-1], spread)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that `share` (0..1) of sorted samples lie below."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def drift(medians: Sequence[float]) -> float:
    """Last quarter of the windows against the first: +0.1 = 10 % slower at the end; 0.0 for less than two windows."""
    if len(medians) < 2:
        return 0.0
    part = max(1, len(medians) // 4)
    return statistics.median(medians[-part:]) / statistics.median(medians[:part]) - 1
