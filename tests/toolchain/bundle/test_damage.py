"""A bundle that is not what was written is caught, and the file is named."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planish.bundle import open_bundle
from planish.bundle.codec import UNSEALED, json_bytes
from planish_passes.errors import PlanishError


def problems(bundle: Path) -> list[str]:
    """What opening and checking says."""
    try:
        return open_bundle(bundle).check_hashes()
    except PlanishError as problem:
        return [str(problem)]


def files(bundle: Path) -> dict[str, Path]:
    """Every file on the disk but the manifest, without help of the code under test."""
    found = {
        p.relative_to(bundle).as_posix(): p for p in bundle.rglob("*") if p.is_file() and p.name != "manifest.json"
    }
    assert len(found) == 19
    return found


def seal(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and make its own hash fit again."""
    path = bundle / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    text = json_bytes({**data, "sha256": UNSEALED})
    path.write_bytes(text.replace(UNSEALED.encode(), hashlib.sha256(text).hexdigest().encode(), 1))


def test_flipped_bit_in_any_file(bundle: Path) -> None:
    for name, path in files(bundle).items():
        whole = path.read_bytes()
        for place in {0, len(whole) // 2, len(whole) - 1}:
            data = bytearray(whole)
            data[place] ^= 1
            path.write_bytes(data)
            assert problems(bundle) == [f"changed: {name} (same size, other content)"]
        path.write_bytes(whole)
    assert problems(bundle) == []


def test_flipped_bit_anywhere_in_the_manifest(bundle: Path) -> None:
    path = bundle / "manifest.json"
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(data)
        found = problems(bundle)
        assert len(found) == 1, (place, found)
        assert "manifest.json" in found[0], (place, found)
    path.write_bytes(whole)
    assert problems(bundle) == []


def test_any_missing_file(bundle: Path) -> None:
    for name, path in files(bundle).items():
        whole = path.read_bytes()
        path.unlink()
        assert problems(bundle) == [f"missing: {name}"]
        path.write_bytes(whole)
    (bundle / "manifest.json").unlink()
    assert "no manifest.json" in problems(bundle)[0]


def test_extra_and_truncated_file(bundle: Path) -> None:
    (bundle / "targets" / "coreml" / "extra.bin").write_bytes(b"x")
    golden = bundle / "golden" / "coreml.safetensors"
    size = golden.stat().st_size
    golden.write_bytes(golden.read_bytes()[:-1])
    assert problems(bundle) == [
        "extra: targets/coreml/extra.bin",
        f"changed: golden/coreml.safetensors ({size - 1} bytes instead of {size})",
    ]
    with pytest.raises(PlanishError, match="golden tensors are not readable"):
        open_bundle(bundle).golden("coreml")


@pytest.mark.parametrize("to", ["/etc/hostname", "report.json", "nowhere"])
def test_symbolic_link(bundle: Path, to: str) -> None:
    (bundle / "tokenizer" / "vocab.txt").unlink()
    (bundle / "tokenizer" / "vocab.txt").symlink_to(to)
    with pytest.raises(PlanishError, match=r"vocab\.txt is a symbolic link"):
        open_bundle(bundle)


def test_linked_folder_and_pipe(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    link = bundle / "targets" / "more"
    link.symlink_to(tmp_path / "other", target_is_directory=True)
    with pytest.raises(PlanishError, match="more is a symbolic link"):
        open_bundle(bundle)
    link.unlink()
    os.mkfifo(bundle / "pipe")
    with pytest.raises(PlanishError, match="pipe is not a regular file"):
        open_bundle(bundle)


def test_link_to_the_bundle_is_followed(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(bundle)
    assert problems(tmp_path / "latest") == []


@pytest.mark.parametrize("length", [0, 1, 100, 2000, -2])
def test_truncated_manifest(bundle: Path, length: int) -> None:
    path = bundle / "manifest.json"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(PlanishError, match="not readable JSON"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
        ("{}", "not the manifest of a planish bundle"),
        ('{"format": "planish-bundle"}', "format version None"),
        ('{"format": "planish-bundle", "version": true}', "format version True"),
        ('{"format": "planish-bundle", "version": "1"}', "format version '1'"),
        ('{"format": "planish-bundle", "version": 2}', "format version 2"),
        ('{"format": "planish-bundle", "version": 1}', r"not valid: sha256: Field required"),
        ('{"version": 1, "version": 1}', "a key appears twice"),
        ("[" * 100_000, "not readable JSON"),
        ("\udcff", "not readable JSON"),
    ],
)
def test_other_json(bundle: Path, text: str, message: str) -> None:
    (bundle / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(PlanishError, match=message):
        open_bundle(bundle)


def test_newer_version_says_what_to_do(bundle: Path) -> None:
    seal(bundle, lambda m: m.update(version=2))
    with pytest.raises(PlanishError) as caught:
        open_bundle(bundle)
    assert "pip install -U planish" in caught.value.hint


def test_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name, message in {"none": "no such bundle", "file": "this is a file", ".": r"no manifest\.json"}.items():
        with pytest.raises(PlanishError, match=message):
            open_bundle(tmp_path / name)


def _rename(data: dict[str, Any], name: str) -> None:
    data["files"][name] = data["files"].pop("targets/onnxruntime/model.onnx.data")


PATHS = [
    "/etc/passwd",
    "../x",
    "a/../../x",
    "a/./b",
    "a//b",
    "a/",
    "",
    "C:x",
    "a\\b",
    "a\nb",
    "manifest.json",
    "REPORT.json",
]


@pytest.mark.parametrize("name", PATHS)
def test_path_that_leads_out_or_astray(bundle: Path, name: str) -> None:
    seal(bundle, lambda m: _rename(m, name))
    with pytest.raises(PlanishError, match="not valid: "):
        open_bundle(bundle)


@pytest.mark.parametrize("key", ["folder", "entry"])
@pytest.mark.parametrize("name", ["/etc", "..", "../../../etc", "nothing/there"])
def test_artifact_outside(bundle: Path, key: str, name: str) -> None:
    seal(bundle, lambda m: m["targets"]["onnxruntime"]["artifact"].update({key: name}))
    with pytest.raises(PlanishError, match="not valid: "):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(surprise=1), "surprise: Extra inputs"),
        (lambda m: m["targets"]["coreml"].update(surprise=1), "surprise: Extra inputs"),
        (lambda m: m["targets"]["coreml"].update(result="passed"), "does not follow from the verdicts"),
        (lambda m: m.update(result="passed"), "does not follow from the verdicts"),
        (lambda m: m["targets"]["coreml"]["artifact"].update(sha256="0" * 64), "hash of coreml"),
        (lambda m: m["targets"]["coreml"].update(evidence="certain"), r"targets\.coreml\.evidence"),
        (lambda m: m.update(tokenizer="elsewhere"), "elsewhere is not among them"),
        (lambda m: m["files"]["report.json"].update(bytes=-1), "greater than or equal to 0"),
        (lambda m: m["files"]["report.json"].update(bytes="1"), "valid integer"),
        (lambda m: m.pop("source"), "source: Field required"),
    ],
)
def test_manifest_that_contradicts_itself(bundle: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    seal(bundle, change)
    with pytest.raises(PlanishError, match=message):
        open_bundle(bundle)


def test_keys_of_others_are_kept_apart(bundle: Path) -> None:
    seal(bundle, lambda m: m["x"].update({"team": {"ticket": 7}}))
    assert open_bundle(bundle).manifest.x == {"team": {"ticket": 7}}
    assert problems(bundle) == []


def test_changed_number_without_a_new_seal(bundle: Path) -> None:
    path = bundle / "manifest.json"
    text = path.read_text()
    assert "0.9991" in text
    path.write_text(text.replace("0.9991", "0.9999"))
    with pytest.raises(PlanishError, match="changed after it was written"):
        open_bundle(bundle)


def test_unreadable_file_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from planish.bundle import read

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(read, "fingerprint", refuse)
    found = open_bundle(bundle).check_hashes()
    assert len(found) == len(files(bundle))
    assert found[0] == "unreadable: LICENSE (Permission denied)"


def test_added_folder_without_files(bundle: Path) -> None:
    (bundle / "targets" / "coreml" / "empty" / "inner").mkdir(parents=True)
    assert problems(bundle) == ["extra: targets/coreml/empty/inner (a folder without files)"]


@pytest.mark.parametrize("name", ["model.sig", "evidence/x", "Evidence/x"])
def test_manifest_that_lists_what_comes_later(bundle: Path, name: str) -> None:
    seal(bundle, lambda m: m["files"].update({name: m["files"]["report.json"]}))
    with pytest.raises(PlanishError, match="is added after the manifest"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["../../x", "/x", "a//b"])
def test_target_whose_name_leads_out(bundle: Path, name: str) -> None:
    seal(bundle, lambda m: m["targets"].update({name: m["targets"]["executorch"]}))
    with pytest.raises(PlanishError, match="not valid: targets"):
        open_bundle(bundle)


def test_stray_evidence(bundle: Path) -> None:
    for place in (
        "evidence/x",
        "evidence/coreml/0123456789abcdef/more.bin",
        "evidence/other/0123456789abcdef/device.json",
    ):
        path = bundle / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
        assert problems(bundle) == [f"extra: {place}"]
        path.unlink()
        for folder in list(path.relative_to(bundle).parents)[:-1]:
            (bundle / folder).rmdir()
    (bundle / "evidence/coreml/0123456789abcdef").mkdir(parents=True)
    (bundle / "evidence/coreml/0123456789abcdef/device.json").write_text("{}")
    assert "missing: evidence/coreml/0123456789abcdef/model.sig" in problems(bundle)
