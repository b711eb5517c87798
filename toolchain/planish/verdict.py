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
class Layer:
    """How far one inner value is off, relative to the value itself.

    Args:
        node, op, module: of the program.
        largest: max|found - truth| / max|truth|, as in `Divergence`.
        typical: root mean square of the difference / root mean square of the truth.
    """

    node: str
    op: str
    module: str
    largest: float
    typical: float


@dataclass(frozen=True)
class Drift:
    """How far values are off along the way through the program. It gates nothing: it shows where an error comes from.

    Args:
        of: "quantisation" (the target's program, to the original model), "lowering" (the artifact, to that program;
            errors add up) or "steps" (each step of the artifact, given its own inputs).
        case: the inputs.
        layers: in order of execution.
        reason: why there are none.
    """

    of: str
    case: str = ""
    layers: tuple[Layer, ...] = ()
    reason: str = ""


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
