"""From what a compile produced to manifest.json and report.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from planish.away import delegation
from planish.bundle import interface
from planish.bundle.codec import UNSEALED
from planish.bundle.manifest import (
    FORMAT,
    REPORT,
    VERSION,
    ArtifactEntry,
    AxisEntry,
    FileEntry,
    LatencyEntry,
    License,
    Manifest,
    PlacementEntry,
    RecipeEntry,
    SourceEntry,
    SourceFileEntry,
    TargetEntry,
    WeightsEntry,
    digest_of,
    result_of,
)
from planish.bundle.part import Number, encode
from planish.bundle.surroundings import created, package_version, tools, without_paths
from planish.bundle.verdicts import entry_of, verdict_to_json
from planish.compiled import Compiled, TargetResult
from planish.recipes import find_recipe
from planish.request import Request
from planish.source import Source
from planish.verdict import Drift, NotRun
from planish_targets import registry
from planish_targets.contract import Evidence, Placement

# From weak to strong.


def manifest(compiled: Compiled, name: str, files: Mapping[str, FileEntry], tokenizer: str | None) -> Manifest:
    """The manifest of a bundle whose files are all there.

    Args:
        compiled: what is in it.
        name: name of the bundle, without `.planish`.
        files: path -> size and hash.
        tokenizer: folder of the tokenizer or processor.
    """
    shared = tuple(entry_of(v) for v in compiled.verdicts)
    entries = {t.target: _target(t, files) for t in compiled.targets}
    made = Manifest(
        format=FORMAT,
        version=VERSION,
        sha256=UNSEALED,
        name=name,
        created=created(),
        planish=package_version("planish") or "unknown",
        task=compiled.source.task,
        labels=_labels(compiled.source),
        recipe=_recipe(compiled.request.recipe),
        source=_source(compiled.source, tuple(f for f in files if "/" not in f and f != REPORT)),
        request=_request(compiled.request, compiled.source),
        tools=tools(),
        result=result_of([*shared, *(v for t in entries.values() for v in t.verdicts)]),
        verdicts=shared,
        targets=entries,
        tokenizer=tokenizer,
        notes=compiled.notes,
        files=dict(sorted(files.items())),
    )
    clean = without_paths(made.model_dump(mode="json"), _folders(compiled))
    return Manifest.model_validate_json(json.dumps(clean))


def report(compiled: Compiled) -> dict[str, Any]:
    """report.json: everything that was measured and decided, in full length."""
    full = {
        "format": "planish-report",
        "version": 1,
        "verdicts": [verdict_to_json(v) for v in compiled.verdicts],
        "steps": [asdict(s) for s in compiled.steps],
        "refused": [asdict(r) for r in compiled.refused],
        "weights": [asdict(w) for w in compiled.weights],
        "notes": list(compiled.notes),
        "targets": {t.target: _target_report(t) for t in compiled.targets},
    }
    # Through JSON, so that tuples are lists everywhere.
    cleaned: dict[str, Any] = without_paths(json.loads(json.dumps(full)), _folders(compiled))
    return cleaned


def _target_report(result: TargetResult) -> dict[str, Any]:
    placement = result.placement
    return {
        "verdicts": [verdict_to_json(v) for v in result.verdicts],
        "steps": [asdict(s) for s in result.steps],
        "placement": placement and {**asdict(placement), **delegation(placement)},
        "memory": _memory(result),
        "latency": {"device": result.latency_device, "seconds": {c: encode(s) for c, s in result.latency.items()}},
        "speed": result.speed and asdict(result.speed),
        "drift": [_drift(d) for d in result.drift],
        "notes": list(result.artifact.notes) if result.artifact else [],
    }


def _memory(result: TargetResult) -> dict[str, Any]:
    """Expected peak of the artifact beside its process, and what the checks' process needed, for shorter calls."""
    methods = result.placement.methods if result.placement else ()
    speed = result.speed
    measured = None
    if speed is not None and speed.peak_bytes is not None and speed.start_bytes is not None:
        measured = speed.peak_bytes - speed.start_bytes
    return {"expected": max((m.peak for m in methods), default=None), "measured": measured}


def _drift(drift: Drift) -> dict[str, Any]:
    layers = [{**asdict(x), "largest": _short(x.largest), "typical": _short(x.typical)} for x in drift.layers]
    return {"of": drift.of, "case": drift.case, "reason": drift.reason, "layers": layers}


def _short(value: float) -> Number:
    return encode(float(f"{value:.4g}"))


def _target(result: TargetResult, files: Mapping[str, FileEntry]) -> TargetEntry:
    name, verdicts = result.target, tuple(entry_of(v) for v in result.verdicts)
    lowering = next((v for v in result.verdicts if v.check == "lowering"), None)
    latency = LatencyEntry(device=result.latency_device, seconds={c: encode(s) for c, s in result.latency.items()})
    known = registry.known().get(name.partition("/")[0])
    golden = golden_path(name)
    return TargetEntry(
        artifact=_artifact(result, files),
        inputs=interface.inputs(result),
        outputs=interface.outputs(result),
        axes={axis: AxisEntry(min=low, max=high) for axis, (low, high) in result.axes.items()},
        requires=dict(known.requires) if known else {},
        # Not the best grade of any check: torch executes the quality check of every target.
        evidence=Evidence.NOT_RUN if lowering is None or isinstance(lowering, NotRun) else lowering.evidence,
        result=result_of(verdicts),
        verdicts=verdicts,
        placement=_placement(result.placement) if result.placement else None,
        latency=latency if result.latency else None,
        golden=golden if golden in files else None,
        notes=result.artifact.notes if result.artifact else (),
    )


def artifact_folder(target: str) -> str:
    """Where the artifact of a target is, inside a bundle."""
    return f"targets/{registry.folder(target)}"


def golden_path(target: str) -> str:
    """Where the golden inputs and outputs of a target are, inside a bundle."""
    return f"golden/{registry.folder(target)}.safetensors"


def _artifact(result: TargetResult, files: Mapping[str, FileEntry]) -> ArtifactEntry | None:
    if result.artifact is None:
        return None
    folder = artifact_folder(result.target)
    return ArtifactEntry(
        folder=folder,
        entry=result.artifact.entry,
        bytes=sum(entry.bytes for path, entry in files.items() if path.startswith(f"{folder}/")),
        sha256=digest_of(files, f"{folder}/{result.artifact.entry}"),
        options=json.loads(json.dumps(dict(result.artifact.options))),
    )


def _placement(placement: Placement) -> PlacementEntry:
    return PlacementEntry(
        source=placement.source,
        operations=len(placement.nodes),
        fallbacks=sum(n.where == "fallback" for n in placement.nodes),
        unknown=sum(n.where == "unknown" for n in placement.nodes),
        share=placement.share(),
        violations=placement.violations,
    )


def _recipe(name: str) -> RecipeEntry:
    weights = find_recipe(name).format
    if weights is None:
        return RecipeEntry(name=name, weights=None)
    entry = WeightsEntry(bits=weights.bits, group=weights.group, symmetric=weights.symmetric)
    return RecipeEntry(name=name, weights=entry)


def _source(source: Source, licenses: tuple[str, ...]) -> SourceEntry:
    told = source.provenance()
    return SourceEntry(
        location=told["location"],
        kind=told["kind"],
        revision=told["revision"],
        architecture=told["architecture"],
        model_type=str(source.config.model_type),
        license=License(id=told["license"], files=tuple(sorted(licenses))),
        files=tuple(SourceFileEntry(name=f["name"], bytes=f["bytes"], sha256=f["sha256"]) for f in told["files"]),
    )


def _request(request: Request, source: Source) -> dict[str, Any]:
    # A runner's command may name hosts and paths: that there was one is enough, verdicts carry the device.
    asked: dict[str, Any] = json.loads(request.model_dump_json(exclude={"output", "runner"}))
    return {**asked, "model": source.provenance()["location"], "runner": sorted(request.runner)}


def _labels(source: Source) -> dict[str, str] | None:
    # Every config has labels ("LABEL_0"), also of models that do not classify.
    if not source.task.endswith("-classification"):
        return None
    return {str(index): str(label) for index, label in sorted((source.config.id2label or {}).items())}


def _folders(compiled: Compiled) -> dict[Path, str]:
    known = {t.artifact.folder: f"<{t.target} artifact>" for t in compiled.targets if t.artifact}
    if compiled.request.output is not None:
        known[compiled.request.output] = "<bundle>"
    return {**known, compiled.source.folder: "<model>"}
