"""A device's result: run, signed, accepted, judged again; unsigned, altered or foreign ones are refused or marked."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import Pair, runner
from safetensors.torch import load_file, save_file

from planish.bundle import open_bundle
from planish.bundle.manifest import SIGNATURE
from planish.trust.check import Trusted
from planish.trust.evidence import Judged, accept, attest, judge_recorded
from planish.trust.sign import KeySigner
from planish.trust.signed import check_signature
from planish.verdict import Failed, NotRun, Passed
from planish.verify.lowering import Execution
from planish_passes.errors import PlanishError
from planish_targets.contract import Evidence

TARGET = "coreml"


@pytest.fixture(scope="session")
def results(written: Path, phone: Pair, tmp_path_factory: pytest.TempPathFactory) -> dict[float, Path]:
    """Signed results by how far the device was off; only to be copied."""
    made = {}
    for off in (0.0, 0.3):
        folder = tmp_path_factory.mktemp("results")
        execution = Execution(1, 60.0, {TARGET: runner(folder, off)})
        done = attest(written, TARGET, KeySigner(phone.private), folder / "result", execution, keep_failed=True)
        assert isinstance(done.verdict, Failed if off else Passed)
        made[off] = folder / "result"
    return made


@pytest.fixture
def result(results: dict[float, Path], tmp_path: Path) -> Path:
    """A good result to spoil."""
    return Path(shutil.copytree(results[0.0], tmp_path / "result"))


def sign_again(result: Path, phone: Pair) -> None:
    """With nothing but a key, base64, JSON and sha256: what an app on a phone has. See docs/trust.md."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    digests = {
        n: hashlib.sha256((result / n).read_bytes()) for n in ("device.json", "outputs.safetensors", "result.json")
    }
    listed = [{"name": n, "algorithm": "sha256", "digest": d.hexdigest()} for n, d in digests.items()]
    root = hashlib.sha256(b"".join(d.digest() for d in digests.values())).hexdigest()
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "result", "digest": {"sha256": root}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
            "resources": listed,
        },
    }
    payload, kind = json.dumps(statement).encode(), "application/vnd.in-toto+json"
    key: Any = serialization.load_pem_private_key(phone.private.read_bytes(), None)
    signed = key.sign(f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload, ec.ECDSA(hashes.SHA256()))
    bundle = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": hashlib.sha256(phone.public.read_bytes()).hexdigest()}},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": kind,
            "signatures": [{"sig": base64.b64encode(signed).decode()}],
        },
    }
    (result / SIGNATURE).write_text(json.dumps(bundle))


def taken(bundle: Path, result: Path, trusted: Trusted) -> Judged:
    return accept(bundle, result, trusted, keep_failed=False)


def test_accepted_and_judged_again(bundle: Path, result: Path, phones: Trusted, owners: Trusted) -> None:
    done = taken(bundle, result, phones)
    assert isinstance(done.verdict, Passed)
    assert done.verdict.evidence is Evidence.EXECUTED
    assert done.verdict.device.startswith("Pocket 3, signed by key phone.pub.pem (")
    assert {m.name for m in done.verdict.metrics} == {"relative", "max_abs", "cosine"}
    opened = open_bundle(bundle)
    assert opened.check_hashes() == []
    assert isinstance(check_signature(opened, owners)[0], Passed)
    assert judge_recorded(opened, phones) == (done,)


def test_nothing_is_known_of_a_signer_who_is_not_trusted(bundle: Path, result: Path, phones: Trusted) -> None:
    taken(bundle, result, phones)
    (judged,) = judge_recorded(open_bundle(bundle), Trusted())
    assert isinstance(judged.verdict, NotRun)
    assert "which nothing here says to trust" in judged.verdict.reason
    assert judged.signer is None


def test_the_makers_key_is_no_devices_key(bundle: Path, result: Path, owners: Trusted) -> None:
    with pytest.raises(PlanishError, match="not trusted"):
        taken(bundle, result, owners)
    assert not (bundle / "evidence").exists()


def test_twice(bundle: Path, result: Path, phones: Trusted) -> None:
    taken(bundle, result, phones)
    with pytest.raises(PlanishError, match="has this result already"):
        taken(bundle, result, phones)


def test_wrong_numbers(bundle: Path, results: dict[float, Path], phones: Trusted) -> None:
    done = taken(bundle, results[0.3], phones)
    assert isinstance(done.verdict, Failed)
    assert (done.folder, (bundle / "evidence").exists()) == (None, False)
    kept = accept(bundle, results[0.3], phones, keep_failed=True)
    assert kept.folder is not None
    (judged,) = judge_recorded(open_bundle(bundle), phones)
    assert isinstance(judged.verdict, Failed)
    assert not next(m for m in judged.verdict.metrics if m.name == "relative").ok


def test_attest_refuses_wrong_numbers(written: Path, phone: Pair, tmp_path: Path) -> None:
    execution = Execution(1, 60.0, {TARGET: runner(tmp_path, 0.3)})
    done = attest(written, TARGET, KeySigner(phone.private), tmp_path / "r", execution, keep_failed=False)
    assert isinstance(done.verdict, Failed)
    assert not (tmp_path / "r").exists()


def test_attest_that_cannot_run(written: Path, phone: Pair, tmp_path: Path) -> None:
    signing = KeySigner(phone.private)
    with pytest.raises(PlanishError, match="The run broke: the runner exited with 1"):
        attest(written, TARGET, signing, tmp_path / "r", Execution(1, 60.0, {TARGET: "false"}), keep_failed=False)
    with pytest.raises(PlanishError, match="no artifact for executorch"):
        attest(written, "executorch", signing, tmp_path / "r", Execution(), keep_failed=False)
    (tmp_path / "r").mkdir()
    with pytest.raises(PlanishError, match="already something of that name"):
        attest(written, TARGET, signing, tmp_path / "r", Execution(), keep_failed=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r"]


ALTERED: list[tuple[Callable[[Path], Any], str]] = [
    (lambda r: (r / SIGNATURE).unlink(), r"not signed: there is no model\.sig"),
    (lambda r: (r / "device.json").unlink(), r"not complete: there is no device\.json"),
    (lambda r: (r / "extra.txt").write_text("x"), "does not belong to a result"),
    (
        lambda r: (r / "device.json").write_text((r / "device.json").read_text().replace("Pocket 3", "Pocket 4")),
        "altered",
    ),
    (lambda r: (r / "outputs.safetensors").write_bytes(b""), "altered"),
    (lambda r: (r / "result.json").write_text("{}"), "altered"),
    (lambda r: (r / SIGNATURE).write_text("{}"), "not valid"),
    (lambda r: ((r / "device.json").unlink(), (r / "device.json").symlink_to("result.json")), "is a symbolic link"),
    (lambda r: (r / "device.json").write_bytes(b" " * (2 << 20)), "larger than"),
]


@pytest.mark.parametrize(("alter", "message"), ALTERED)
def test_altered(bundle: Path, result: Path, phones: Trusted, alter: Callable[[Path], Any], message: str) -> None:
    alter(result)
    with pytest.raises(PlanishError, match=message):
        taken(bundle, result, phones)
    assert not (bundle / "evidence").exists()


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


SIGNED: list[tuple[Callable[[Path], Any], str]] = [
    (lambda r: edit(r / "result.json", bundle="0" * 64), "of another bundle"),
    (lambda r: edit(r / "result.json", artifact="0" * 64), "of another artifact"),
    (lambda r: edit(r / "result.json", target="executorch"), "no artifact for 'executorch'"),
    (lambda r: edit(r / "result.json", target="../../x"), "no artifact for"),
    (lambda r: edit(r / "result.json", more=1), "more: Extra inputs"),
    (lambda r: edit(r / "device.json", evidence="certain"), "evidence: Input should be"),
    (lambda r: edit(r / "device.json", device=""), "device: String should have"),
    (lambda r: edit(r / "device.json", protocol=2), "protocol: Input should be 1"),
    (lambda r: (r / "outputs.safetensors").write_bytes(b"\xff" * 99), "outputs are not readable"),
]


@pytest.mark.parametrize(("change", "message"), SIGNED)
def test_well_signed_but_wrong(
    bundle: Path, result: Path, phones: Trusted, phone: Pair, change: Callable[[Path], Any], message: str
) -> None:
    change(result)
    sign_again(result, phone)
    with pytest.raises(PlanishError, match=message):
        taken(bundle, result, phones)


def _outputs(result: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(result / "outputs.safetensors")
    change(tensors)
    save_file(tensors, result / "outputs.safetensors")


SHORT = "short/last_hidden_state"
ODD: list[tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = [
    (lambda t: t.pop(SHORT), "did not return last_hidden_state of the case short"),
    (lambda t: t.update({SHORT: torch.full((1, 1, 1), 0.5)}), r"has the shape \[1, 1, 1\] instead of \[1, 3, 8\]"),
    (
        lambda t: t.update({SHORT: torch.zeros(1, 3, 8, dtype=torch.int64)}),
        "holds torch.int64 instead of torch.float32",
    ),
    (lambda t: t.update({SHORT: torch.full((1, 3, 8), float("nan"))}), "does not reproduce"),
]


@pytest.mark.parametrize(("change", "message"), ODD)
def test_outputs_that_cannot_be_compared(
    bundle: Path,
    result: Path,
    phones: Trusted,
    phone: Pair,
    change: Callable[[dict[str, torch.Tensor]], Any],
    message: str,
) -> None:
    _outputs(result, change)
    sign_again(result, phone)
    verdict = taken(bundle, result, phones).verdict
    assert isinstance(verdict, Failed)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(verdict.reason)


def test_a_phone_signs_with_nothing_but_a_key(bundle: Path, result: Path, phones: Trusted, phone: Pair) -> None:
    sign_again(result, phone)
    assert isinstance(taken(bundle, result, phones).verdict, Passed)


def test_grade_is_not_rounded_up(bundle: Path, result: Path, phones: Trusted, phone: Pair) -> None:
    facts = json.loads((result / "device.json").read_text())
    del facts["evidence"]
    (result / "device.json").write_text(json.dumps(facts))
    sign_again(result, phone)
    verdict = taken(bundle, result, phones).verdict
    assert isinstance(verdict, Passed)
    assert verdict.evidence is Evidence.EMULATED


@pytest.mark.parametrize("part", ["device.json", "outputs.safetensors", "result.json", SIGNATURE])
def test_altered_after_it_was_accepted(bundle: Path, result: Path, phones: Trusted, part: str) -> None:
    done = taken(bundle, result, phones)
    assert done.folder is not None
    data = bytearray((done.folder / part).read_bytes())
    data[len(data) // 2] ^= 1
    (done.folder / part).write_bytes(data)
    for trusted in (phones, Trusted()):
        (judged,) = judge_recorded(open_bundle(bundle), trusted)
        assert isinstance(judged.verdict, Failed)


def test_moved_to_another_name(bundle: Path, result: Path, phones: Trusted) -> None:
    done = taken(bundle, result, phones)
    assert done.folder is not None
    done.folder.rename(done.folder.with_name("0" * 16))
    (judged,) = judge_recorded(open_bundle(bundle), phones)
    assert isinstance(judged.verdict, Failed)
    assert "lies where another one belongs" in judged.verdict.reason


def test_damaged_bundle_takes_nothing(bundle: Path, result: Path, phones: Trusted) -> None:
    (bundle / "report.json").write_text("{}")
    with pytest.raises(PlanishError, match="bundle is not whole"):
        taken(bundle, result, phones)


def test_verify_tells_of_devices(bundle: Path, result: Path, phones: Trusted) -> None:
    from planish.compiled import Silent
    from planish.verify import Ask, verify_bundle

    taken(bundle, result, phones)
    ask = Ask(devices=phones, run=False)
    report = verify_bundle(bundle, targets=None, runner={}, threads=1, timeout=9, progress=Silent(), ask=ask)
    verdicts = {t.target: [v.check for v in t.verdicts if isinstance(v, Passed)] for t in report.targets}
    assert verdicts == {"onnxruntime": [], "coreml": ["device"], "executorch": []}
    assert report.failed == ()
    untrusting = replace(ask, devices=Trusted())
    report = verify_bundle(bundle, targets=None, runner={}, threads=1, timeout=9, progress=Silent(), ask=untrusting)
    assert all(isinstance(v, NotRun) for t in report.targets for v in t.verdicts)
