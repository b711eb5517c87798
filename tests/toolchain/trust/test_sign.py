"""planish signs what model-signing verifies, and the other way round; whatever changed is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bundles import Pair, certificates, key_pair

from planish.bundle import open_bundle
from planish.bundle.manifest import SIGNATURE
from planish.trust.check import Trusted
from planish.trust.keys import PASSWORD, public_key
from planish.trust.sign import CertificateSigner, KeySigner, SigstoreSigner, sign_bundle
from planish.trust.signed import check_signature
from planish.verdict import Failed, Passed
from planish_passes.errors import PlanishError


def judged(bundle: Path, trusted: Trusted) -> Passed | Failed:
    return check_signature(open_bundle(bundle), trusted)[0]


def model_signing(*args: object) -> subprocess.CompletedProcess[str]:
    """The command of the package, in a process of its own."""
    command = [sys.executable, "-m", "model_signing", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def called(*args: object) -> int:
    """The same command in this process, which is quicker: its exit code."""
    from click.testing import CliRunner
    from model_signing._cli import main

    return CliRunner().invoke(main, [str(a) for a in args]).exit_code


def test_signed_bundle_is_whole_and_signed(bundle: Path, owners: Trusted, owner: Pair) -> None:
    verdict, signer = check_signature(open_bundle(bundle), owners)
    assert isinstance(verdict, Passed)
    assert open_bundle(bundle).check_hashes() == []
    assert signer is not None
    assert (signer.kind, signer.name) == ("key", "owner.pub.pem")
    assert signer.fingerprint == public_key(owner.public).fingerprint
    assert verdict.metrics[0].value == len(open_bundle(bundle).manifest.files) + 1


def test_model_signings_own_command_verifies_it(bundle: Path, owner: Pair) -> None:
    ask = ("verify", "key", bundle, "--signature", bundle / SIGNATURE, "--public_key", owner.public)
    done = model_signing(*ask)
    assert (done.returncode, "Verification succeeded" in done.stdout) == (0, True), done.stderr
    (bundle / "targets/onnxruntime/model.onnx").write_bytes(b"other")
    done = model_signing(*ask)
    assert done.returncode != 0
    assert "Hash mismatch for" in done.stderr
    assert "targets/onnxruntime/model.onnx" in done.stderr


def test_a_signature_of_model_signings_own_command_counts(bundle: Path, owner: Pair, owners: Trusted) -> None:
    (bundle / SIGNATURE).unlink()
    assert called("sign", "key", bundle, "--signature", bundle / SIGNATURE, "--private_key", owner.private) == 0
    assert isinstance(judged(bundle, owners), Passed)


def test_unsigned(bundle: Path, owners: Trusted) -> None:
    (bundle / SIGNATURE).unlink()
    verdict = judged(bundle, owners)
    assert isinstance(verdict, Failed)
    assert verdict.reason == "the bundle is not signed"


def test_key_of_a_stranger(bundle: Path, phones: Trusted) -> None:
    verdict = judged(bundle, phones)
    assert isinstance(verdict, Failed)
    assert "which is not trusted" in verdict.reason


def test_one_of_several_keys(bundle: Path, owners: Trusted, phones: Trusted) -> None:
    assert isinstance(judged(bundle, Trusted((*phones.keys, *owners.keys))), Passed)


def test_nobody_is_trusted(bundle: Path) -> None:
    with pytest.raises(PlanishError, match="nothing says whom to trust") as caught:
        judged(bundle, Trusted())
    assert "--key" in caught.value.hint


def test_hint_of_a_trusted_key_does_not_make_a_signature(bundle: Path, owners: Trusted, phone: Pair) -> None:
    """A stranger signs and writes the owner's fingerprint into the file."""
    sign_bundle(bundle, KeySigner(phone.private), replace=True)
    data = json.loads((bundle / SIGNATURE).read_text())
    data["verificationMaterial"]["publicKey"]["hint"] = owners.keys[0].fingerprint
    (bundle / SIGNATURE).write_text(json.dumps(data, separators=(",", ":")))
    verdict = judged(bundle, owners)
    assert isinstance(verdict, Failed)
    assert "does not fit" in verdict.reason


def test_manifest_that_was_sealed_again(bundle: Path, owners: Trusted) -> None:
    """Every hash fits, and the signature does not: what hashes alone cannot find."""
    from planish.bundle.codec import dump_manifest
    from planish.bundle.files import fingerprint

    (bundle / "targets/onnxruntime/model.onnx.data").write_bytes(b"poison")
    manifest = open_bundle(bundle).manifest
    path = "targets/onnxruntime/model.onnx.data"
    changed = manifest.model_copy(update={"files": {**manifest.files, path: fingerprint(bundle / path)}})
    (bundle / "manifest.json").write_bytes(dump_manifest(changed))
    assert open_bundle(bundle).check_hashes() == []
    verdict = judged(bundle, owners)
    assert isinstance(verdict, Failed)
    assert verdict.reason == f"the signature is of other files: manifest.json, {path}"


def test_signing_twice_needs_a_word(bundle: Path, phone: Pair, phones: Trusted) -> None:
    with pytest.raises(PlanishError, match="signed already"):
        sign_bundle(bundle, KeySigner(phone.private))
    sign_bundle(bundle, KeySigner(phone.private), replace=True)
    assert isinstance(judged(bundle, phones), Passed)


def test_damaged_bundle_is_not_signed(bundle: Path, owner: Pair) -> None:
    (bundle / "report.json").write_text("{}")
    before = (bundle / SIGNATURE).read_bytes()
    with pytest.raises(PlanishError, match=r"not signed: changed: report\.json"):
        sign_bundle(bundle, KeySigner(owner.private), replace=True)
    assert (bundle / SIGNATURE).read_bytes() == before
    assert [p.name for p in bundle.parent.iterdir()] == [bundle.name]


def test_locked_key(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = key_pair(tmp_path, "locked", b"secret")
    monkeypatch.delenv(PASSWORD, raising=False)
    with pytest.raises(PlanishError, match="locked with a password") as caught:
        sign_bundle(bundle, KeySigner(pair.private), replace=True)
    assert PASSWORD in caught.value.hint
    monkeypatch.setenv(PASSWORD, "wrong")
    with pytest.raises(PlanishError, match="does not open"):
        sign_bundle(bundle, KeySigner(pair.private), replace=True)
    monkeypatch.setenv(PASSWORD, "secret")
    sign_bundle(bundle, KeySigner(pair.private), replace=True)
    assert isinstance(judged(bundle, Trusted((public_key(pair.public),))), Passed)


def test_password_is_of_no_use_to_an_open_key(bundle: Path, owner: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD, "secret")
    sign_bundle(bundle, KeySigner(owner.private), replace=True)


def test_keys_that_cannot_sign(bundle: Path, owner: Pair, tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("no key")
    rsa = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
    (tmp_path / "broken.pem").write_text(rsa)
    for path, message in (
        (owner.public, "only the private one can sign"),
        (tmp_path / "text.pem", "no private key in PEM form"),
        (tmp_path / "broken.pem", "no private key in PEM form"),
        (tmp_path / "none.pem", "cannot be read: No such file"),
    ):
        with pytest.raises(PlanishError, match=message):
            sign_bundle(bundle, KeySigner(path), replace=True)
    with pytest.raises(PlanishError, match="private key, and nobody should be sent it"):
        public_key(owner.private)


def test_key_of_another_kind(bundle: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    for name, key, message in (
        ("ed", ed25519.Ed25519PrivateKey.generate(), "another kind of key"),
        ("k1", ec.generate_private_key(ec.SECP256K1()), "curve secp256k1 is not one of"),
    ):
        path = tmp_path / name
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        path.write_bytes(key.private_bytes(*form))
        with pytest.raises(PlanishError, match=message):
            sign_bundle(bundle, KeySigner(path), replace=True)


def test_certificate(bundle: Path, owner: Pair, phone: Pair, owners: Trusted, tmp_path: Path) -> None:
    root, certificate = certificates(tmp_path, owner, "release")
    sign_bundle(bundle, CertificateSigner(owner.private, certificate), replace=True)
    verdict, signer = check_signature(open_bundle(bundle), Trusted(roots=(root,)))
    assert isinstance(verdict, Passed), verdict
    assert signer is not None
    assert (signer.kind, signer.name) == ("certificate", "CN=release")
    assert isinstance(judged(bundle, Trusted(roots=(root,), subjects=("CN=release",))), Passed)
    refused = judged(bundle, Trusted(roots=(root,), subjects=("CN=other",)))
    assert isinstance(refused, Failed)
    assert "CN=release, who is not trusted" in refused.reason
    other, _ = certificates(tmp_path, phone, "stranger")
    refused = judged(bundle, Trusted(roots=(other,)))
    assert isinstance(refused, Failed)
    assert "not vouched for" in refused.reason
    with pytest.raises(PlanishError, match="nothing says whom to trust"):  # not even the roots of the web
        judged(bundle, owners)
    with pytest.raises(PlanishError, match="certificate cannot sign"):
        sign_bundle(bundle, CertificateSigner(phone.private, certificate), replace=True)
    ask = ("verify", "certificate", bundle, "--signature", bundle / SIGNATURE, "--certificate_chain", root)
    assert called(*ask) == 0


def test_sigstore_that_cannot_be_reached(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only part that no test runs: a fault stands in for the missing network."""
    from model_signing import signing, verifying

    from planish.trust.check import Identity

    def no_network(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(signing.Config, "use_sigstore_signer", no_network)
    before = (bundle / SIGNATURE).read_bytes()
    with pytest.raises(PlanishError, match="Sigstore cannot be used from here: Name or service") as caught:
        sign_bundle(bundle, SigstoreSigner(ambient=True), replace=True)
    assert "--key" in caught.value.hint
    assert (bundle / SIGNATURE).read_bytes() == before
    data = json.loads(before)
    data["verificationMaterial"] = {"certificate": {"rawBytes": "AAAA"}, "tlogEntries": []}
    (bundle / SIGNATURE).write_text(json.dumps(data, separators=(",", ":")))
    monkeypatch.setattr(verifying.Config, "use_sigstore_verifier", no_network)
    with pytest.raises(PlanishError, match="Sigstore cannot be used from here"):
        judged(bundle, Trusted(identities=(Identity("me@example.org", "https://accounts.example"),)))
    with pytest.raises(PlanishError, match="a Sigstore identity, and nothing says whom to trust"):
        judged(bundle, Trusted())


def test_without_the_library(bundle: Path, owner: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(PlanishError, match="need the package model-signing") as caught:
        sign_bundle(bundle, KeySigner(owner.private), replace=True)
    assert caught.value.hint == "pip install 'planish[sign]'"
    with pytest.raises(PlanishError, match="need the package model-signing"):
        public_key(owner.public)


def test_git_files_are_no_way_in(bundle: Path, owner: Pair, owners: Trusted) -> None:
    """model-signing's command ignores them by default; planish does not."""
    (bundle / ".gitattributes").write_text("x")
    ask = ("verify", "key", bundle, "--signature", bundle / SIGNATURE, "--public_key", owner.public)
    assert called(*ask) == 0
    assert called(*ask, "--no-ignore-git-paths") != 0
    assert open_bundle(bundle).check_hashes() == ["extra: .gitattributes"]
    assert isinstance(judged(bundle, owners), Failed)


def test_renamed_bundle_and_copy_keep_the_signature(bundle: Path, owners: Trusted, tmp_path: Path) -> None:
    os.rename(bundle, tmp_path / "other.planish")
    shutil.copytree(tmp_path / "other.planish", tmp_path / "copy.planish")
    assert isinstance(judged(tmp_path / "copy.planish", owners), Passed)
