"""The bill of materials is CycloneDX by the library's own schema, whatever the manifest holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planish.bundle import open_bundle
from planish.bundle.manifest import License, Manifest, SourceEntry, SourceFileEntry
from planish.bundle.sbom import purl, sbom


def faults(text: str) -> Any:
    """What the library's validator says; None when all is well."""
    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)


@pytest.fixture
def manifest(bundle: Path) -> Manifest:
    return open_bundle(bundle).manifest


def test_written_file_is_valid(bundle: Path) -> None:
    assert faults((bundle / "sbom.cdx.json").read_text()) is None


def test_the_validator_can_refuse(bundle: Path) -> None:
    data = json.loads((bundle / "sbom.cdx.json").read_text())
    data["metadata"]["component"]["modelCard"]["surprise"] = 1
    assert "surprise" in str(faults(json.dumps(data)))


def test_what_it_says(bundle: Path, manifest: Manifest) -> None:
    data = json.loads((bundle / "sbom.cdx.json").read_text())
    whole = data["metadata"]["component"]
    assert (whole["type"], whole["name"]) == ("machine-learning-model", "tiny-int8")
    assert whole["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert whole["modelCard"]["modelParameters"]["modelArchitecture"] == "BertModel"
    parts = {part["bom-ref"]: part for part in data["components"]}
    assert set(parts) == {"target:onnxruntime", "target:coreml", "tokenizer", "source"}
    listed = {c["name"]: c["hashes"][0]["content"] for p in parts.values() for c in p["components"]}
    for path in ("targets/onnxruntime/model.onnx.data", "tokenizer/vocab.txt"):
        assert listed[path] == manifest.files[path].sha256
    assert listed["model.safetensors"] == next(f.sha256 for f in manifest.source.files if f.name == "model.safetensors")
    told = {p["name"]: p["value"] for p in parts["target:coreml"]["properties"]}
    assert (told["planish:evidence"], told["planish:result"]) == ("emulated", "failed")
    metrics = parts["target:coreml"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert {"type": "lowering: max_abs", "value": "NaN", "slice": "padded"} in metrics
    assert "pkg:pypi/torch@" in json.dumps(data["metadata"]["tools"])


def test_model_of_the_hub_has_a_package_url(manifest: Manifest) -> None:
    commit = "0123456789" * 4
    source = manifest.source.model_copy(update={"location": "BAAI/bge-small", "kind": "hub", "revision": commit})
    assert purl(source) == f"pkg:huggingface/BAAI/bge-small@{commit}"
    data = sbom(manifest.model_copy(update={"source": source}))
    assert faults(json.dumps(data)) is None
    assert data["metadata"]["component"]["pedigree"]["ancestors"][0]["purl"] == purl(source)
    assert purl(manifest.source) is None


def test_equal_manifests_make_equal_bills(manifest: Manifest) -> None:
    later = manifest.model_copy(update={"created": "2030-01-01T00:00:00Z", "sha256": "1" * 64})
    assert sbom(manifest) == sbom(later)
    other = sbom(manifest.model_copy(update={"name": "other"}))
    assert other["serialNumber"] != sbom(manifest)["serialNumber"]


TEXT = st.text(max_size=20).filter(lambda text: text.encode("utf-8", "ignore").decode() == text)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=TEXT,
    license=st.none() | TEXT | st.sampled_from(["mit", "llama3", "other"]),
    kind=st.sampled_from(["hub", "gguf"]),
    location=TEXT.filter(lambda t: t.strip("/ ") != ""),
    revision=st.none() | TEXT,
)
def test_whatever_a_model_is_called(
    manifest: Manifest, name: str, license: str | None, kind: str, location: str, revision: str | None
) -> None:
    source = SourceEntry(
        location=location,
        kind=kind,
        revision=revision,
        architecture=name,
        model_type=name,
        license=License(id=license, files=()),
        files=(SourceFileEntry(name=location, bytes=1, sha256="0" * 64),),
    )
    data = sbom(manifest.model_copy(update={"name": name, "source": source}))
    assert faults(json.dumps(data)) is None
