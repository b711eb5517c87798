"""planish sign, attest, accept, pack, unpack, and what verify and inspect say of it: exit codes and output."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from bundles import Pair, compiled, key_pair, model_folder, runner

from planish.bundle import write_bundle


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unsigned bundle and keys beside it; only to be copied."""
    root = tmp_path_factory.mktemp("trust")
    write_bundle(compiled(model_folder(root / "model"), root / "work", fine=True), root / "out" / "m.planish")
    for name in ("maker", "phone"):
        key_pair(root / "out", name)
    return root / "out"


@pytest.fixture
def place(written: Path, tmp_path: Path, run: Any) -> Path:
    """The working folder of `run`, with a bundle m.planish and keys."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def keys(place: Path) -> dict[str, Pair]:
    return {n: Pair(place / f"{n}.pem", place / f"{n}.pub.pem") for n in ("maker", "phone")}


@pytest.fixture
def signed(run: Any, keys: dict[str, Pair]) -> dict[str, Pair]:
    assert run("sign", "m.planish", "--key", "maker.pem").exit_code == 0
    return keys


def test_sign_and_verify(run: Any, signed: Any, told: Any) -> None:
    result = run("verify", "m.planish", "--signature", "--key", "maker.pub.pem", "--no-run", "-q")
    assert result.exit_code == 0, result.output
    assert "signed  by key maker.pub.pem (" in result.stdout
    assert "no check failed" in result.stdout
    result = run("sign", "m.planish", "--key", "maker.pem")
    assert (result.exit_code, told(result)[0]) == (1, "The bundle is signed already.")
    data = json.loads(run("sign", "m.planish", "--key", "maker.pem", "--replace", "--json").stdout)
    assert (data["ok"], data["signature"]["kind"]) == (True, "key")
    assert len(data["signature"]["fingerprint"]) == 64


def test_verify_names_what_is_wrong(run: Any, signed: Any, told: Any, place: Path) -> None:
    stranger = run("verify", "m.planish", "--key", "phone.pub.pem", "--no-run")  # a key asks for a signature
    assert stranger.exit_code == 3
    assert told(stranger)[1] == "bundle signature"
    assert "which is not trusted" in stranger.stdout
    nobody = run("verify", "m.planish", "--signature", "--no-run")
    assert (nobody.exit_code, told(nobody)[2]) == (1, "say whose signature you expect: --key PUB.pem")
    (place / "m.planish" / "model.sig").unlink()
    unsigned = run("verify", "m.planish", "--signature", "--key", "maker.pub.pem", "--no-run", "--json")
    data = json.loads(unsigned.stdout)
    assert (unsigned.exit_code, data["ok"], data["signer"]) == (3, False, None)
    assert data["failed"][0]["reason"] == "the bundle is not signed"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["sign", "m.planish"], "Nobody signs."),
        (["sign", "m.planish", "--key", "maker.pem", "--sigstore"], "A key and Sigstore cannot both sign."),
        (["sign", "m.planish", "--certificate", "c.pem", "--sigstore"], "A certificate needs its key."),
        (["sign", "m.planish", "--key", "maker.pem", "--chain", "c.pem"], "A chain begins with the certificate"),
        (["sign", "m.planish", "--key", "maker.pem", "--ambient"], "An ambient identity is for Sigstore."),
        (["verify", "m.planish", "--identity", "me"], "An identity and its issuer belong together."),
        (["verify", "m.planish", "--policy", "p", "--key", "maker.pub.pem"], "The policy itself says"),
        (["accept", "m.planish", "r"], "Nothing says whose results count."),
        (["attest", "m.planish", "-t", "coreml", "-o", "r"], "Nobody signs."),
    ],
)
def test_wrong_command_lines(run: Any, place: Path, told: Any, args: list[str], message: str) -> None:
    result = run(*args)
    assert result.exit_code == 2, result.output
    assert told(result)[0].startswith(message)


def test_policy(run: Any, signed: Any, told: Any, place: Path) -> None:
    rules = 'version = 1\n[signature]\nkeys = ["maker.pub.pem"]\n[targets."*"]\nevidence = "emulated"\n'
    (place / "policy.toml").write_text(rules)
    result = run("verify", "m.planish", "--policy", "policy.toml", "--no-run", "-q")
    assert result.exit_code == 0, result.output
    assert "policy  kept" in result.stdout
    (place / "policy.toml").write_text(f'recipes = ["float"]\n{rules.replace("emulated", "executed")}')
    result = run("verify", "m.planish", "--policy", "policy.toml", "--json")
    assert result.exit_code == 3
    reasons = [f["reason"] for f in json.loads(result.stdout)["failed"]]
    assert reasons == [
        "recipes: int8 is not one of float",
        "targets.coreml.evidence: executed is asked, emulated is what there is",
    ]
    (place / "policy.toml").write_text("surprise = 1\n" + rules)
    result = run("verify", "m.planish", "--policy", "policy.toml", "--json")
    assert (result.exit_code, told(result)[0]) == (1, "unknown key 'surprise'.")


def test_evidence(run: Any, signed: Any, told: Any, place: Path) -> None:
    good, bad = (runner(place, off) for off in (0.0, 0.5))
    how = ("attest", "m.planish", "-t", "coreml", "--key", "phone.pem")
    result = run(*how, "--runner", f"coreml={bad}", "-o", "bad")
    assert (result.exit_code, (place / "bad").exists()) == (3, False)
    assert told(result)[0].startswith("The outputs are not those of the bundle")
    result = run(*how, "--runner", f"coreml={good}", "-o", "good")
    assert result.exit_code == 0, result.output
    assert "coreml: executed on Pocket 3; relative 0.0e+00, limit " in result.stdout
    assert run("accept", "m.planish", "good", "--key", "maker.pub.pem").exit_code == 1
    data = json.loads(run("accept", "m.planish", "good", "--key", "phone.pub.pem", "--json").stdout)
    assert (data["ok"], data["target"], data["signer"]["name"]) == (True, "coreml", "phone.pub.pem")
    result = run("verify", "m.planish", "--key", "maker.pub.pem", "--evidence-key", "phone.pub.pem", "--no-run", "-q")
    assert result.exit_code == 0, result.output
    assert "evidence  coreml: executed on Pocket 3, signed by key phone.pub.pem (" in result.stdout
    result = run("verify", "m.planish", "--no-run")
    assert "coreml, device: evidence/coreml/" in result.stdout.replace("\n", "")


def test_verify_signs_what_artifacts_return_here(run: Any, signed: Any, place: Path) -> None:
    good, bad = (runner(place, off) for off in (0.0, 0.5))
    how = ("verify", "m.planish", "--target", "coreml", "--attest", "phone.pem")
    assert run(*how, "--runner", f"coreml={bad}").exit_code == 3
    assert not (place / "m.planish.coreml.result").exists()
    data = json.loads(run(*how, "--runner", f"coreml={good}", "--json").stdout)
    assert data["attested"] == {"coreml": "m.planish.coreml.result"}
    accepted = run("accept", "m.planish", "m.planish.coreml.result", "--key", "phone.pub.pem")
    assert accepted.exit_code == 0, accepted.output
    assert "coreml: executed on Pocket 3" in accepted.stdout
    again = run(*how, "--runner", f"coreml={good}")
    assert (again.exit_code, "already something" in again.output) == (1, True)


def test_pack_and_unpack(run: Any, signed: Any, told: Any, place: Path) -> None:
    result = run("pack", "m.planish")
    assert result.exit_code == 0, result.output
    assert "stored" in result.stdout
    shutil.rmtree(place / "m.planish")
    result = run("verify", "m.planish.zip", "--key", "maker.pub.pem", "--no-run", "-q")
    assert result.exit_code == 0, result.output
    data = json.loads(run("inspect", "m.planish.zip", "--json").stdout)
    assert (data["kind"], data["path"]) == ("bundle", "m.planish.zip")
    assert data["signature"].startswith("key ")
    assert "not checked: planish verify --signature" in run("inspect", "m.planish.zip").stdout.replace("\n", "")
    assert "planish unpack" in told(run("inspect", "m.planish.zip", "--view"))[2]
    assert json.loads(run("unpack", "m.planish.zip", "--json").stdout)["bundle"] == "m.planish"
    assert run("verify", "m.planish", "--key", "maker.pub.pem", "--no-run").exit_code == 0
    archive = place / "m.planish.zip"
    archive.write_bytes(archive.read_bytes()[:-1])
    for args in (["verify", "m.planish.zip"], ["inspect", "m.planish.zip"], ["unpack", "m.planish.zip", "-o", "x"]):
        result = run(*args, "--json")
        assert result.exit_code == 1
        assert json.loads(result.stdout)["error"]["what"].startswith("The archive is damaged")


def test_run_says_how_to_open_a_packed_bundle(run: Any, signed: Any, told: Any) -> None:
    run("pack", "m.planish")
    result = run("run", "m.planish.zip", "hello")
    assert (result.exit_code, told(result)[2]) == (1, "planish unpack m.planish.zip")
