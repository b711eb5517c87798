"""Every input of a bundle is in its key: each is changed here, and nothing else may change it."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matrices import FACTS, with_request

from planish.matrix import key
from planish.matrix.facts import Facts
from planish.matrix.file import Job
from planish.matrix.hashes import Hashes
from planish.matrix.key import differences, inputs_of
from planish.request import Gates, Request

OTHER: dict[str, Any] = {
    "targets": ("coreml",),
    "recipe": "int4",
    "group": 64,
    "symmetric": True,
    "rounding": "search",
    "activations": "none",
    "bits": 5.0,
    "max_size": 1000,
    "task": "fill-mask",
    "revision": "main",
    "sequence_length": 3,
    "context": 3,
    "minimum_ios": 17,
    "ane": True,
    "loaders": False,
    "dynamic": True,
    "trust_remote_code": True,
    "logits": "all",
    "verify": False,
    "keep_failed": True,
    "threads": 2,
    "timeout": 1.0,
    "runner": {"coreml": "ssh mac"},
    "gates": Gates(cosine=0.5),
}


def inputs(job: Job, tmp_path: Path, facts: Facts = FACTS) -> key.Inputs:
    return inputs_of(job, facts, Hashes(tmp_path / "hashes.json"))


def test_the_same_inputs_have_the_same_key(job: Job, tmp_path: Path) -> None:
    first, again = inputs(job, tmp_path), inputs(job, tmp_path)
    assert first.key == again.key
    assert differences(first.data, again.data) == ()
    assert json.loads(json.dumps(first.data)) == first.data


@pytest.mark.parametrize("field", [f for f in Request.model_fields if f not in ("model", "output")])
def test_every_field_of_the_request(job: Job, tmp_path: Path, field: str) -> None:
    """Also a field that is newer than OTHER: a copy is not validated, and any value will do."""
    before, after = inputs(job, tmp_path), inputs(with_request(job, **{field: OTHER.get(field, "other")}), tmp_path)
    assert before.key != after.key
    assert any(told.startswith(field) for told in differences(before.data, after.data))


@pytest.mark.parametrize("field", Gates.model_fields)
def test_every_gate(job: Job, tmp_path: Path, field: str) -> None:
    before, after = inputs(job, tmp_path), inputs(with_request(job, gates=Gates(**{field: 0.25})), tmp_path)
    assert differences(before.data, after.data) == (f"gates.{field}: not set -> 0.25",)
    assert before.key != after.key


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "source.spm", "1_Pooling/config.json", "a.py"]
)
def test_every_file_of_the_model(job: Job, model: Path, tmp_path: Path, name: str) -> None:
    before = inputs(job, tmp_path)
    path = model / name
    data = path.read_bytes()
    path.write_bytes(b"?" + data[1:])
    os.utime(path, (1, 1))  # as old and as long as it was
    after = inputs(job, tmp_path)
    assert differences(before.data, after.data) == (f"model file {name} changed",)
    assert before.key != after.key


def test_files_that_come_and_go(job: Job, model: Path, tmp_path: Path) -> None:
    before = inputs(job, tmp_path)
    (model / "tokenizer.json").rename(model / "added_tokens.json")
    after = inputs(job, tmp_path)
    assert differences(before.data, after.data) == (
        "model file added_tokens.json is new",
        "model file tokenizer.json is gone",
    )
    assert before.key != after.key


def test_a_model_in_one_file(job: Job, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF 1")
    one = with_request(job, model=str(file))
    before = inputs(one, tmp_path)
    assert list(before.data["model"]["files"]) == ["m.gguf"]
    file.write_bytes(b"GGUF 2")
    assert differences(before.data, inputs(one, tmp_path).data) == ("model file m.gguf changed",)


def _machine(name: str) -> Callable[[pytest.MonkeyPatch], Facts]:
    def change(monkeypatch: pytest.MonkeyPatch) -> Facts:
        monkeypatch.setattr(platform, name, lambda: "other")
        return FACTS

    return change


def _variable(name: str) -> Callable[[pytest.MonkeyPatch], Facts]:
    def change(monkeypatch: pytest.MonkeyPatch) -> Facts:
        monkeypatch.setenv(name, "1")
        return FACTS

    return change


def _version(monkeypatch: pytest.MonkeyPatch) -> Facts:
    monkeypatch.setattr(key, "version", lambda name: "99")
    return FACTS


def _format(monkeypatch: pytest.MonkeyPatch) -> Facts:
    monkeypatch.setattr(key, "FORMAT", 99)
    return FACTS


SURROUNDINGS: dict[str, tuple[Callable[[pytest.MonkeyPatch], Facts], str]] = {
    "version of planish": (_version, "planish version: "),
    "planish's code": (lambda _: replace(FACTS, sources="1" * 64), "planish's own code changed"),
    "a package of every compile": (
        lambda _: replace(FACTS, packages={**FACTS.packages, "": {"torch": "2.14.0"}}),
        "package torch: 2.13.0 -> 2.14.0",
    ),
    "the SDK of a target": (
        lambda _: replace(FACTS, packages={**FACTS.packages, "coreml": {"sdk-of-coreml": "2"}}),
        "package sdk-of-coreml: 1.0 -> 2",
    ),
    "python": (_machine("python_version"), "machine python: "),
    "interpreter": (_machine("python_implementation"), "machine python: "),
    "system": (_machine("system"), "machine system: "),
    "processor": (_machine("machine"), "machine processor: "),
    "date": (_variable("SOURCE_DATE_EPOCH"), "environment variable SOURCE_DATE_EPOCH: not set -> 1"),
    "builder": (_variable("PLANISH_BUILDER_ID"), "environment variable PLANISH_BUILDER_ID: not set -> 1"),
    "an SDK's place": (_variable("COREML_ROOT"), "environment variable COREML_ROOT: not set -> 1"),
    "form of the key": (_format, "format"),
}


@pytest.mark.parametrize("what", SURROUNDINGS)
def test_everything_around(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    change, told = SURROUNDINGS[what]
    before = inputs(job, tmp_path)
    after = inputs(job, tmp_path, change(monkeypatch))
    assert before.key != after.key
    assert len(differences(before.data, after.data)) == 1
    assert differences(before.data, after.data)[0].startswith(told)


def test_the_name_stands_in_the_manifest(job: Job, tmp_path: Path) -> None:
    assert inputs(replace(job, name="other"), tmp_path).key != inputs(job, tmp_path).key


def test_what_does_not_matter(job: Job, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Places, other targets, forms of the model that planish never opens, other variables."""
    before = inputs(job, tmp_path)
    moved = tmp_path / "elsewhere" / "minilm"
    shutil.copytree(model, moved)
    (moved / "pytorch_model.bin").write_bytes(b"never opened")
    (moved / ".git").mkdir()
    (moved / ".git" / "HEAD").write_text("x")
    (moved / "minilm-int8.planish").mkdir()
    (moved / "minilm-int8.planish" / "manifest.json").write_text("{}")
    monkeypatch.setenv("HOME", "/nowhere")
    facts = replace(FACTS, packages={**FACTS.packages, "directml": {"sdk-of-directml": "9"}})
    other = with_request(job, model=str(moved), output=tmp_path / "far" / "x.planish")
    assert inputs(other, tmp_path, facts).key == before.key


def test_the_folder_is_named_in_the_manifest(job: Job, model: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed"
    shutil.copytree(model, renamed)
    after = inputs(with_request(job, model=str(renamed)), tmp_path)
    assert differences(inputs(job, tmp_path).data, after.data) == ("model location: minilm -> renamed",)
