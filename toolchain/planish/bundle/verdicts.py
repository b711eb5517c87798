"""Verdicts in JSON, in the manifest and in the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, JsonValue, TypeAdapter, ValidationError

from planish.bundle.part import Number, Part, decode, encode
from planish.verdict import Divergence, Failed, Metric, NotRun, Passed, Verdict
from planish_passes.errors import PlanishError
from planish_targets.contract import Evidence


class MetricEntry(Part):
    """One measured number and, when it gates, its limit."""

    name: str
    value: Number
    limit: Number | None = Field(description="the bound; null = reported only")
    at_most: bool = Field(description="true: the value must not exceed the limit; false: must not fall below it")
    case: str = Field(description="the golden case that gave the worst value; may be empty")

    @classmethod
    def of(cls, metric: Metric) -> MetricEntry:
        """The entry of a metric."""
        limit = None if metric.limit is None else encode(metric.limit)
        return cls(name=metric.name, value=encode(metric.value), limit=limit, at_most=metric.at_most, case=metric.case)

    def metric(self) -> Metric:
        """The inverse of `of`."""
        limit = None if self.limit is None else decode(self.limit)
        return Metric(self.name, decode(self.value), limit, self.at_most, self.case)


class DivergenceEntry(Part):
    """The first place where two runs part."""

    node: str
    op: str
    module: str
    relative_error: Number

    @classmethod
    def of(cls, at: Divergence) -> DivergenceEntry:
        """The entry of a divergence."""
        return cls(node=at.node, op=at.op, module=at.module, relative_error=encode(at.relative_error))

    def divergence(self) -> Divergence:
        """The inverse of `of`."""
        return Divergence(self.node, self.op, self.module, decode(self.relative_error))


class PassedEntry(Part):
    """The check ran and every gated metric is within its limit."""

    result: Literal["passed"]
    check: str
    evidence: Evidence
    metrics: tuple[MetricEntry, ...]
    device: str


class FailedEntry(Part):
    """The check ran and failed."""

    result: Literal["failed"]
    check: str
    evidence: Evidence
    reason: str
    metrics: tuple[MetricEntry, ...]
    device: str
    diverged: DivergenceEntry | None


class NotRunEntry(Part):
    """The check did not run, and why."""

    result: Literal["not-run"]
    check: str
    reason: str


VerdictEntry = Annotated[PassedEntry | FailedEntry | NotRunEntry, Field(discriminator="result")]
_ADAPTER: TypeAdapter[PassedEntry | FailedEntry | NotRunEntry] = TypeAdapter(VerdictEntry)


def entry_of(verdict: Verdict) -> PassedEntry | FailedEntry | NotRunEntry:
    """The manifest's entry of a verdict."""
    if isinstance(verdict, NotRun):
        return NotRunEntry(result="not-run", check=verdict.check, reason=verdict.reason)
    check, grade, device = verdict.check, verdict.evidence, verdict.device
    metrics = tuple(MetricEntry.of(m) for m in verdict.metrics)
    if isinstance(verdict, Passed):
        return PassedEntry(result="passed", check=check, evidence=grade, metrics=metrics, device=device)
    return FailedEntry(
        result="failed",
        check=check,
        evidence=grade,
        reason=verdict.reason,
        metrics=metrics,
        device=device,
        diverged=DivergenceEntry.of(verdict.diverged) if verdict.diverged else None,
    )


def verdict_of(entry: PassedEntry | FailedEntry | NotRunEntry) -> Verdict:
    """The inverse of `entry_of`."""
    if isinstance(entry, NotRunEntry):
        return NotRun(entry.check, entry.reason)
    metrics = tuple(m.metric() for m in entry.metrics)
    if isinstance(entry, PassedEntry):
        return Passed(entry.check, entry.evidence, metrics, entry.device)
    diverged = entry.diverged.divergence() if entry.diverged else None
    return Failed(entry.check, entry.evidence, entry.reason, metrics, entry.device, diverged)


def verdict_to_json(verdict: Verdict) -> dict[str, JsonValue]:
    """A verdict as JSON values; NaN and infinities become the strings "NaN", "Infinity" and "-Infinity"."""
    return entry_of(verdict).model_dump(mode="json")


def verdict_from_json(data: Mapping[str, JsonValue]) -> Verdict:
    """The inverse of `verdict_to_json`.

    Raises:
        PlanishError: not a verdict; names the key.
    """
    try:
        return verdict_of(_ADAPTER.validate_json(json.dumps(dict(data))))
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        raise PlanishError(f"This is not a verdict: {first['msg']}.", where, "see docs/bundle-format.md") from problem
