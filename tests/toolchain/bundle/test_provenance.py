"""The provenance is an in-toto statement with SLSA's predicate, by in-toto's own types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planish.bundle import open_bundle, write_bundle
from planish.bundle.provenance import BUILDER, UNATTESTED, provenance
from planish_passes.errors import PlanishError


@pytest.fixture
def statement(bundle: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((bundle / "provenance.intoto.json").read_text())
    return told


def test_in_toto_reads_it(statement: dict[str, Any]) -> None:
    from google.protobuf import json_format
    from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
    from in_toto_attestation.v1.statement import Statement
    from in_toto_attestation.v1.statement_pb2 import Statement as Proto

    proto = json_format.ParseDict(statement, Proto())
    Statement.copy_from_pb(proto).validate()
    # Fields of vendors are SLSA's to allow and the type's to ignore.
    read = json_format.ParseDict(statement["predicate"], provenance_pb2.Provenance(), ignore_unknown_fields=True)
    assert read.run_details.builder.id == UNATTESTED
    assert read.build_definition.build_type.endswith("#compile-v1")


def test_subjects_are_every_file_that_comes_before_it(bundle: Path, statement: dict[str, Any]) -> None:
    files = open_bundle(bundle).manifest.files
    wanted = {p: e.sha256 for p, e in files.items() if p not in ("sbom.cdx.json", "provenance.intoto.json")}
    assert {s["name"]: s["digest"]["sha256"] for s in statement["subject"]} == wanted
    assert "targets/coreml/model.mlpackage/Data/weight.bin" in wanted


def test_sources_have_roles_and_hashes(bundle: Path, statement: dict[str, Any]) -> None:
    source = open_bundle(bundle).manifest.source
    found = {d["name"]: d for d in statement["predicate"]["buildDefinition"]["resolvedDependencies"]}
    roles = {f.name: found[f"tiny-bert/{f.name}"]["annotations"]["role"] for f in source.files}
    assert roles["model.safetensors"] == "weights"
    assert roles["tokenizer.json"] == roles["vocab.txt"] == "tokenizer"
    assert roles["config.json"] == roles["1_Pooling/config.json"] == "config"
    for file in source.files:
        assert found[f"tiny-bert/{file.name}"]["digest"] == {"sha256": file.sha256}
    assert found["torch"]["uri"].startswith("pkg:pypi/torch@")


def test_request_recipe_and_grades(statement: dict[str, Any]) -> None:
    predicate = statement["predicate"]
    asked = predicate["buildDefinition"]["externalParameters"]
    assert (asked["request"]["model"], asked["recipe"]["name"]) == ("tiny-bert", "int8")
    verdicts = {(v["target"], v["check"]): v for v in predicate["runDetails"]["metadata"]["planish_verdicts"]}
    assert verdicts["coreml", "lowering"]["evidence"] == "emulated"
    assert verdicts["executorch", "lowering"]["result"] == "not-run"
    assert verdicts["program", "capture"]["result"] == "passed"


def test_commit_of_a_model_of_the_hub(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    source = manifest.source.model_copy(update={"location": "a/b", "kind": "hub", "revision": "c" * 40})
    told = provenance(manifest.model_copy(update={"source": source}), "https://x.example/y")
    first = told["predicate"]["buildDefinition"]["resolvedDependencies"][0]
    assert (first["uri"], first["digest"]) == (f"pkg:huggingface/a/b@{'c' * 40}", {"gitCommit": "c" * 40})


def test_builder_comes_from_the_environment(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BUILDER, "https://ci.example/runner")
    at = write_bundle(make(), tmp_path / "m.planish")
    told = json.loads((at / "provenance.intoto.json").read_text())
    assert told["predicate"]["runDetails"]["builder"]["id"] == "https://ci.example/runner"
    monkeypatch.setenv(BUILDER, "my laptop")
    with pytest.raises(PlanishError, match="'my laptop' is no URI"):
        write_bundle(make(), at)
