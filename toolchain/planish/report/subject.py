"""One bundle, as the report tells of it. Nothing that is read here is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from planish.bench.store import Stored, stored
from planish.bundle.files import fingerprint
from planish.bundle.manifest import REPORT, Manifest
from planish.bundle.part import Count, Number
from planish.bundle.read import open_bundle
from planish.trust.check import Trusted
from planish_passes.errors import PlanishError

_LARGEST = 256 << 20  # bytes of a report.json
_DAMAGED = "copy the bundle again from where it was made, or compile the model again"


class _Stored(BaseModel):
    """A part of report.json: what a later planish adds is ignored, what an earlier one lacks has its default."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Weight(_Stored):
    """A weight before and after quantisation, in bytes."""

    name: str
    before: Count
    after: Count
    format: str


class Refused(_Stored):
    """What a pass left as it was, and why."""

    node: str
    reason: str
    module: str = ""


class Placed(_Stored):
    """An operation, and where it is expected to run."""

    node: str
    op: str
    where: str
    unit: str
    reason: str = ""
    module: str = ""


class Placement(_Stored):
    """Every operation of an artifact."""

    source: str
    nodes: tuple[Placed, ...] = ()
    violations: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()


class Speed(_Stored):
    """See `planish.speed.Speed`."""

    device: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    threads: int = 1
    seconds: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    tokens: dict[str, int] = Field(default_factory=dict)
    load_seconds: float | None = None
    peak_bytes: int | None = None
    start_bytes: int | None = None


class Layer(_Stored):
    """See `planish.verdict.Layer`."""

    node: str
    op: str
    module: str
    largest: Number
    typical: Number


class Drift(_Stored):
    """See `planish.verdict.Drift`."""

    of: str
    case: str = ""
    reason: str = ""
    layers: tuple[Layer, ...] = ()


class TargetReport(_Stored):
    """What report.json has of one target."""

    placement: Placement | None = None
    speed: Speed | None = None
    drift: tuple[Drift, ...] = ()


class Report(_Stored):
    """report.json, as far as the page needs it."""

    weights: tuple[Weight, ...] = ()
    refused: tuple[Refused, ...] = ()
    targets: dict[str, TargetReport] = Field(default_factory=dict)

    def of(self, target: str) -> TargetReport:
        """What is known of a target, which may be nothing."""
        return self.targets.get(target, TargetReport())


@dataclass(frozen=True)
class Subject:
    """A bundle to tell of.

    Args:
        manifest, report: what it says of itself.
        label: a letter, where several bundles are compared.
        measurements: what planish bench, or a device, measured later.
        unshown: a sentence for each that cannot be shown.
    """

    manifest: Manifest
    report: Report
    label: str = ""
    measurements: tuple[Stored, ...] = ()
    unshown: tuple[str, ...] = ()

    @property
    def recipe(self) -> str:
        """`int8, per channel, symmetric`."""
        recipe = self.manifest.recipe
        if recipe.weights is None:
            return recipe.name
        group = f"groups of {recipe.weights.group}" if recipe.weights.group else "per channel"
        return f"{recipe.name}, {group}, {'symmetric' if recipe.weights.symmetric else 'with zero points'}"

    def asked(self) -> list[tuple[str, str]]:
        """What the request said, in words; what it left open is left out."""
        request = self.manifest.request
        gates = request.get("gates")
        told = {**request, **({f"gate {k}": v for k, v in gates.items()} if isinstance(gates, dict) else {})}
        return [(k, _told(v)) for k, v in told.items() if v not in (None, [], {}) and k != "gates"]


def _told(value: JsonValue) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(_told, value)) if isinstance(value, list) else str(value)


def read_report(data: bytes | Mapping[str, Any], where: str) -> Report:
    """report.json, as bytes or as values.

    Raises:
        PlanishError: it is not one; names the key.
    """
    try:
        return Report.model_validate_json(data) if isinstance(data, bytes) else Report.model_validate(data)
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or REPORT
        raise PlanishError(f"The report is not valid: {key}: {first['msg']}.", where, _DAMAGED) from problem


def open_subject(path: Path, label: str = "", trusted: Trusted | None = None) -> Subject:
    """Read what a bundle says of itself, and what was measured later; its artifacts are not opened.

    Args:
        path: the bundle.
        label: see Subject.
        trusted: whose signatures under measurements count as checked.

    Raises:
        PlanishError: no bundle, or its manifest or report is damaged.
    """
    bundle = open_bundle(path)
    file, listed = bundle.root / REPORT, bundle.manifest.files[REPORT]
    if listed.bytes > _LARGEST:
        raise PlanishError(f"{REPORT} is larger than {_LARGEST >> 20} MiB.", str(file), _DAMAGED)
    if not file.is_file() or fingerprint(file) != listed:
        raise PlanishError(f"{REPORT} is not the one that was written.", str(file), _DAMAGED)
    found, unshown = stored(bundle, trusted)
    return Subject(bundle.manifest, read_report(file.read_bytes(), str(file)), label, found, unshown)
