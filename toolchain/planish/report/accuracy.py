"""How near every gated metric is to its limit, on one scale for all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from planish.bundle.part import decode
from planish.bundle.verdicts import MetricEntry, NotRunEntry, VerdictEntry


@dataclass(frozen=True)
class Gate:
    """A gated metric.

    Args:
        used: share of what the limit allows (1: at the limit); None where it cannot be told.
    """

    check: str
    metric: MetricEntry
    used: float | None

    @property
    def ok(self) -> bool:
        """Within the limit."""
        return self.metric.metric().ok


def gates(verdicts: Iterable[VerdictEntry], *checks: str) -> tuple[Gate, ...]:
    """Every gated metric of these checks, in order; of all checks when none is named."""
    return tuple(
        Gate(verdict.check, metric, used(metric))
        for verdict in verdicts
        if not isinstance(verdict, NotRunEntry) and (not checks or verdict.check in checks)
        for metric in verdict.metrics
        if metric.limit is not None
    )


def used(metric: MetricEntry) -> float | None:
    """How much of the allowance is used up: value / limit, or (1 - value) / (1 - limit) for shares and cosines."""
    if metric.limit is None:
        return None
    value, limit = decode(metric.value), decode(metric.limit)
    if not (math.isfinite(value) and math.isfinite(limit)):
        return None
    if metric.at_most:
        return value / limit if limit > 0 and value >= 0 else None
    return (1 - value) / (1 - limit) if limit < 1 and value <= 1 else None


def loss(verdicts: Iterable[VerdictEntry]) -> tuple[str, float] | None:
    """(first gated metric of the quality check, how far it is from perfect: 1 - cosine, or a divergence)."""
    found = gates(verdicts, "quality")
    if not found:
        return None
    metric = found[0].metric
    value = decode(metric.value)
    if not math.isfinite(value):
        return None
    return metric.name, value if metric.at_most else max(0.0, 1 - value)
