"""What a check found: types, not booleans."""

from __future__ import annotations

from dataclasses import dataclass

from planish_targets.contract import Evidence


@dataclass(frozen=True)
class Metric:
    """One measured number and, when it gates, its limit.

    Args:
        name: `max_abs`, `cosine_min`, `relative_max`, ...
        value: what was measured.
        limit: the bound; None = reported only.
        at_most: True when the value must not exceed the limit, False when it must not fall below it.
        case: the input that gave the worst value.
    """

    name: str
    value: float
    limit: float | None = None
    at_most: bool = True
    case: str = ""

    @property
    def ok(self) -> bool:
        """Within the limit. NaN is never within a limit."""
        if self.limit is None:
            return True
        return self.value <= self.limit if self.at_most else self.value >= self.limit


@dataclass(frozen=True)
class Divergence:
    """The first place where two runs part: a node of the program, its source module, by how much."""

    node: str
    op: str
    module: str
    relative_error: float


@dataclass(frozen=True)
class Passed:
    """The check ran and every gated metric is within its limit."""

    check: str
    evidence: Evidence
    metrics: tuple[Metric, ...] = ()
    device: str = ""


@dataclass(frozen=True)
class Failed:
    """The check ran and failed; the reason names what, and `diverged` where it begins."""

    check: str
    evidence: Evidence
    reason: str
    metrics: tuple[Metric, ...] = ()
    device: str = ""
    diverged: Divergence | None = None


@dataclass(frozen=True)
class NotRun:
    """Nothing can be said, and why."""

    check: str
    reason: str


Verdict = Passed | Failed | NotRun
