"""Measurements in a bundle: they do not touch its seal, each stands for itself, and none is called more than it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundles import Pair, compiled, key_pair, model_folder
from measurements import bench

from planish.bench.schema import Bench
from planish.bench.store import UNSIGNED, stored, take, write
from planish.bundle import Bundle, open_bundle, write_bundle
from planish.trust.check import Trusted
from planish.trust.keys import public_key
from planish.trust.sign import KeySigner
from planish_passes.errors import PlanishError

PLACE = "evidence/measurements"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planish.report.pages.draw", lambda specs: ({}, "not now"))
        return write_bundle(compiled(model_folder(root / "tiny-bert"), root, fine=True), root / "tiny.planish")


@pytest.fixture
def bundle(written: Path, tmp_path: Path) -> Bundle:
    return open_bundle(Path(shutil.copytree(written, tmp_path / written.name)))


@pytest.fixture(scope="module")
def phone(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return key_pair(tmp_path_factory.mktemp("phone"), "phone")


@pytest.fixture
def phones(phone: Pair) -> Trusted:
    return Trusted((public_key(phone.public),))


@pytest.fixture
def others(tmp_path: Path) -> Trusted:
    return Trusted((public_key(key_pair(tmp_path, "other").public),))


def data(bundle: Bundle, change: Callable[[dict[str, Any]], object] = bool) -> dict[str, Any]:
    artifact = bundle.manifest.targets["onnxruntime"].artifact
    assert artifact is not None
    made = bench(bundle.manifest.sha256, artifact.sha256)
    change(made)
    return made


def file(bundle: Bundle, at: Path, change: Callable[[dict[str, Any]], object] = bool) -> Path:
    at.write_text(json.dumps(data(bundle, change)))
    return at


def signed(bundle: Bundle, at: Path, phone: Pair) -> Path:
    return write(Bench.model_validate_json(json.dumps(data(bundle))), at, KeySigner(phone.private))


def test_unsigned_ones_are_taken_and_called_so(bundle: Bundle, tmp_path: Path) -> None:
    seal = bundle.manifest.sha256
    taken = take(bundle, file(bundle, tmp_path / "phone.json"), None)
    assert (taken.signed, taken.checked) == (UNSIGNED, False)
    again = open_bundle(bundle.root)
    assert again.manifest.sha256 == seal
    assert again.check_hashes() == []
    (found,), refused = stored(again)
    assert (found.signed, found.name, refused) == (UNSIGNED, taken.name, ())
    assert (bundle.root / PLACE / taken.name / "bench.json").is_file()


def test_signed_ones_are_checked_every_time(bundle: Bundle, phone: Pair, phones: Trusted, tmp_path: Path) -> None:
    taken = take(bundle, signed(bundle, tmp_path / "phone", phone), phones)
    assert taken.checked
    assert taken.signed.startswith("signed by key phone.pub.pem")
    assert bundle.check_hashes() == []
    (unknown,), _ = stored(bundle)
    assert not unknown.checked
    assert unknown.signed.startswith("signed by key ")
    assert unknown.signed.endswith(", not checked")
    (known,), _ = stored(bundle, phones)
    assert known.checked


def test_a_key_that_is_asked_for_must_be_the_one(bundle: Bundle, phone: Pair, others: Trusted, tmp_path: Path) -> None:
    with pytest.raises(PlanishError, match="which is not trusted"):
        take(bundle, signed(bundle, tmp_path / "phone", phone), others)
    with pytest.raises(PlanishError, match="The measurements are not signed"):
        take(bundle, file(bundle, tmp_path / "phone.json"), others)
    assert bundle.measurements() == ()


def test_somebody_elses_are_shown_as_not_checked(
    bundle: Bundle, phone: Pair, phones: Trusted, others: Trusted, tmp_path: Path
) -> None:
    take(bundle, signed(bundle, tmp_path / "phone", phone), phones)
    (found,), refused = stored(bundle, others)
    assert not found.checked
    assert "not checked" in found.signed
    assert refused == ()


def test_altered_after_signing(bundle: Bundle, phone: Pair, phones: Trusted, tmp_path: Path) -> None:
    place = signed(bundle, tmp_path / "phone", phone)
    text = (place / "bench.json").read_text()
    (place / "bench.json").write_text(text.replace("Pocket 3", "Pocket 9"))
    for trusted in (phones, None):
        with pytest.raises(PlanishError, match="altered after they were signed"):
            take(bundle, place, trusted)


def test_altered_in_the_bundle(bundle: Bundle, phone: Pair, phones: Trusted, tmp_path: Path) -> None:
    taken = take(bundle, signed(bundle, tmp_path / "phone", phone), phones)
    path = bundle.root / PLACE / taken.name / "bench.json"
    path.write_text(path.read_text().replace("Pocket 3", "Pocket 9"))
    found, refused = stored(bundle, phones)
    assert found == ()
    assert "altered after they were signed" in refused[0]


def test_an_unsigned_one_that_was_altered_lies_where_another_belongs(bundle: Bundle, tmp_path: Path) -> None:
    taken = take(bundle, file(bundle, tmp_path / "phone.json"), None)
    path = bundle.root / PLACE / taken.name / "bench.json"
    path.write_text(path.read_text().replace("Pocket 3", "Pocket 9"))
    assert "It lies where other measurements belong." in stored(bundle)[1][0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["subjects"][0].update(seal="e" * 64), "of another bundle"),
        (lambda d: d["subjects"][0].update(artifact="e" * 64), "no such artifact for 'onnxruntime'"),
        (lambda d: d["subjects"][0].update(target="executorch"), "no such artifact for 'executorch'"),
        (lambda d: d["rows"][2]["rate"].update(value=500.0), "contradict themselves: rows.2: rate and time"),
        (lambda d: d["rows"][0].pop("unit"), "rows.0.unit: Field required"),
    ],
)
def test_what_is_not_of_this_bundle_or_not_true(
    bundle: Bundle, tmp_path: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    with pytest.raises(PlanishError, match=says):
        take(bundle, file(bundle, tmp_path / "phone.json", change), None)
    assert not (bundle.root / "evidence").exists()


def test_twice_and_over_something_else(bundle: Bundle, tmp_path: Path) -> None:
    place = file(bundle, tmp_path / "phone.json")
    take(bundle, place, None)
    with pytest.raises(PlanishError, match="has these measurements already"):
        take(bundle, place, None)
    with pytest.raises(PlanishError, match="already something of that name"):
        write(Bench.model_validate_json(json.dumps(data(bundle))), place, None)


def test_only_measurements_have_a_place(bundle: Bundle, tmp_path: Path) -> None:
    taken = take(bundle, file(bundle, tmp_path / "phone.json"), None)
    (bundle.root / PLACE / taken.name / "more.bin").write_bytes(b"x")
    (bundle.root / PLACE / "bench.json").write_bytes(b"x")
    assert set(bundle.check_hashes()) == {f"extra: {PLACE}/{taken.name}/more.bin", f"extra: {PLACE}/bench.json"}


def test_places_that_hold_no_measurements(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(PlanishError, match="There are no measurements"):
        take(bundle, tmp_path / "empty", None)
    with pytest.raises(PlanishError, match="cannot be read"):
        take(bundle, tmp_path / "nowhere", None)
