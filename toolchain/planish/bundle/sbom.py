"""sbom.cdx.json: the bundle as a CycloneDX 1.6 bill of materials, with a model card.

The library has no class for model cards (cyclonedx-python-lib 11), so the JSON is written here; tests hold it against
the library's own schema. Nothing in it depends on when or where it was written.
Specification: https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from planish.bundle.manifest import FileEntry, Manifest, SourceEntry, TargetEntry
from planish.bundle.verdicts import NotRunEntry, VerdictEntry

SBOM = "sbom.cdx.json"
_MODEL = "machine-learning-model"
Json = dict[str, Any]


def sbom(manifest: Manifest) -> Json:
    """The bill of materials, as JSON values: the model, its artifacts, its tokenizer, its source and the tools."""
    targets = {name: entry for name, entry in manifest.targets.items() if entry.artifact is not None}
    parts = [_target(name, entry, manifest) for name, entry in targets.items()]
    if manifest.tokenizer is not None:
        parts.append(_part("data", "tokenizer", "tokenizer", components=_files(manifest.tokenizer, manifest.files)))
    parts.append(_source(manifest.source))
    body = {
        "metadata": {
            "tools": {"components": _tools(manifest)},
            "component": _model(manifest),
        },
        "components": parts,
        "dependencies": [
            {"ref": "bundle", "dependsOn": [p["bom-ref"] for p in parts if p["bom-ref"] != "source"]},
            *({"ref": p["bom-ref"], "dependsOn": ["source"]} for p in parts if p["bom-ref"] != "source"),
        ],
    }
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        # Of the contents, so that equal bundles have equal bytes.
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(body, sort_keys=True)).urn,
        "version": 1,
        **body,
    }


def purl(source: SourceEntry) -> str | None:
    """The package URL of a model of the hub (https://github.com/package-url/purl-spec, type huggingface); else None."""
    owner, _, name = source.location.rpartition("/")
    return _purl("huggingface", owner, name, source.revision) if source.kind == "hub" else None


def package_purl(name: str, version: str) -> str | None:
    """The package URL of a Python distribution; None for a name that none can have."""
    return _purl("pypi", "", name, version)


def _purl(kind: str, owner: str, name: str, version: str | None) -> str | None:
    from packageurl import PackageURL

    try:
        return str(PackageURL(kind, owner or None, name, version).to_string())
    except ValueError:  # names that no service has: what the manifest says stands beside it
        return None


def describe(entry: VerdictEntry) -> str:
    """A verdict in one line: result, grade, and what ran it or why nothing did."""
    if isinstance(entry, NotRunEntry):
        return f"not-run: {entry.reason}"
    return ", ".join(part for part in (entry.result, str(entry.evidence), entry.device) if part)


def _model(manifest: Manifest) -> Json:
    source = manifest.source
    properties = {
        "planish:recipe": manifest.recipe.name,
        "planish:result": manifest.result,
        **{f"planish:verdict:{v.check}": describe(v) for v in manifest.verdicts},
    }
    ancestor = {"type": _MODEL, "name": source.location, **_version(source)}
    return _part(
        _MODEL,
        "bundle",
        manifest.name,
        licenses=_licenses(source.license.id),
        pedigree={"ancestors": [ancestor]},
        modelCard={"modelParameters": _parameters(manifest), "quantitativeAnalysis": _metrics(manifest.verdicts)},
        properties=_properties(properties),
    )


def _target(name: str, entry: TargetEntry, manifest: Manifest) -> Json:
    assert entry.artifact is not None
    ports = {
        side: [{"format": f"{p.name}: {p.dtype}[{', '.join(map(str, p.shape))}]"} for p in told]
        for side, told in (("inputs", entry.inputs), ("outputs", entry.outputs))
    }
    properties = {
        "planish:entry": entry.artifact.entry,
        "planish:evidence": str(entry.evidence),
        "planish:result": entry.result,
        **{f"planish:verdict:{v.check}": describe(v) for v in entry.verdicts},
    }
    return _part(
        _MODEL,
        f"target:{name}",
        f"{manifest.name}/{name}",
        components=_files(entry.artifact.folder, manifest.files),
        modelCard={
            "modelParameters": {**_parameters(manifest), **ports},
            "quantitativeAnalysis": _metrics(entry.verdicts),
        },
        properties=_properties(properties),
    )


def _source(source: SourceEntry) -> Json:
    return _part(
        _MODEL,
        "source",
        source.location,
        **_version(source),
        licenses=_licenses(source.license.id),
        components=[
            {"type": "file", "bom-ref": f"source:{f.name}", "name": f.name, "hashes": _hashes(f.sha256)}
            for f in source.files
        ],
        properties=_properties({"planish:kind": source.kind}),
    )


def _version(source: SourceEntry) -> Json:
    return _told({"version": source.revision, "purl": purl(source)})


def _told(entry: Json) -> Json:
    return {key: value for key, value in entry.items() if value is not None}


def _tools(manifest: Manifest) -> list[Json]:
    return [
        {"type": "application", "name": "planish", "version": manifest.planish},
        *(
            _told({"type": "library", "name": name, "version": version, "purl": package_purl(name, version)})
            for name, version in manifest.tools.packages.items()
        ),
    ]


def _parameters(manifest: Manifest) -> Json:
    return {
        "task": manifest.task,
        "architectureFamily": manifest.source.model_type,
        "modelArchitecture": manifest.source.architecture,
    }


def _metrics(verdicts: Iterable[VerdictEntry]) -> Json:
    rows = []
    for verdict in verdicts:
        for metric in () if isinstance(verdict, NotRunEntry) else verdict.metrics:
            row = {"type": f"{verdict.check}: {metric.name}", "value": str(metric.value)}
            rows.append({**row, "slice": metric.case} if metric.case else row)
    return {"performanceMetrics": rows}


def _licenses(named: str | None) -> list[Json]:
    from cyclonedx.spdx import fixup_id

    if named is None or not named:
        return []
    known = fixup_id(named)
    return [{"license": {"name": named} if known is None else {"id": known}}]


def _files(folder: str, files: Mapping[str, FileEntry]) -> list[Json]:
    return [
        {"type": "file", "bom-ref": f"file:{path}", "name": path, "hashes": _hashes(entry.sha256)}
        for path, entry in files.items()
        if path.startswith(f"{folder}/")
    ]


def _hashes(sha256: str) -> list[Json]:
    return [{"alg": "SHA-256", "content": sha256}]


def _properties(told: Mapping[str, str]) -> list[Json]:
    return [{"name": name, "value": value} for name, value in told.items()]


def _part(kind: str, ref: str, name: str, **rest: Any) -> Json:
    return {"type": kind, "bom-ref": ref, "name": name, **{k: v for k, v in rest.items() if v not in ([], {}, None)}}
