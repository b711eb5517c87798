"""A policy is read strictly and fails closed: what is not said counts against the bundle, and every rule is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from bundles import Pair

from planish.bundle import open_bundle
from planish.bundle.manifest import Manifest
from planish.compiled import Silent
from planish.trust.check import Signer
from planish.trust.evidence import Judged
from planish.trust.judge import judge
from planish.trust.policy import Policy, PolicyError, load_policy
from planish.verdict import Failed, NotRun, Passed
from planish.verify import Ask, BundleReport, verify_bundle
from planish_passes.errors import PlanishError
from planish_targets.contract import Evidence

NOW = datetime(2026, 6, 1, tzinfo=UTC)
GOOD = """
version = 1
[signature]
keys = ["owner.pub.pem"]
[targets.onnxruntime]
evidence = "executed"
checks = ["capture", "lowering"]
[targets.coreml]
evidence = "emulated"
[targets.executorch]
evidence = "not-run"
"""
WITHOUT_EXECUTORCH = GOOD.partition("[targets.executorch]")[0]


@pytest.fixture
def write(tmp_path: Path, owner: Pair, phone: Pair) -> Callable[[str], Path]:
    """Write a policy; the keys lie beside it."""
    shutil.copy(owner.public, tmp_path)
    shutil.copy(phone.public, tmp_path)

    def put(text: str) -> Path:
        (tmp_path / "policy.toml").write_text(text)
        return tmp_path / "policy.toml"

    return put


def verify(bundle: Path, policy: Path) -> BundleReport:
    ask = Ask(policy=load_policy(policy), run=False)
    return verify_bundle(bundle, targets=None, runner={}, threads=1, timeout=9, progress=Silent(), ask=ask)


def rules(broken: list[Failed]) -> list[str]:
    return [verdict.reason for verdict in broken]


def policy(text: str) -> Policy:
    import tomllib

    return Policy.model_validate(tomllib.loads(text))


@pytest.fixture
def manifest(written: Path) -> Manifest:
    made = open_bundle(written).manifest
    return made.model_copy(update={"created": "2026-05-01T00:00:00Z"})


def test_kept(bundle: Path, write: Callable[[str], Path]) -> None:
    report = verify(bundle, write(WITHOUT_EXECUTORCH))
    assert report.failed == ()
    assert [v.check for v in report.verdicts] == ["hashes", "signature", "policy"]
    assert report.signer is not None


def test_unsigned_bundle_is_refused_before_anything_else(bundle: Path, write: Callable[[str], Path]) -> None:
    (bundle / "model.sig").unlink()
    report = verify(bundle, write(WITHOUT_EXECUTORCH))
    assert [(n, v.check, v.reason) for n, v in report.failed] == [("bundle", "signature", "the bundle is not signed")]
    assert report.targets == ()


def test_signed_by_another(bundle: Path, write: Callable[[str], Path]) -> None:
    report = verify(bundle, write(WITHOUT_EXECUTORCH.replace("owner", "phone")))
    assert "not trusted" in report.failed[0][1].reason


def test_every_broken_rule_is_named(bundle: Path, write: Callable[[str], Path]) -> None:
    text = GOOD.replace('"emulated"', '"executed"').replace("[signature]", 'recipes = ["float"]\n[signature]')
    report = verify(bundle, write(text))
    assert [v.reason for _, v in report.failed] == [
        "recipes: int8 is not one of float",
        "targets.coreml.evidence: executed is asked, emulated is what there is",
        "targets.executorch: the bundle has no artifact for it",
    ]
    assert report.targets == ()  # nothing is run


def test_targets_without_a_rule(manifest: Manifest) -> None:
    text = WITHOUT_EXECUTORCH.partition("[targets.coreml]")[0]
    assert rules(judge(policy(text), manifest, (), NOW)) == [
        'targets.coreml: no rule allows this target; name it, or every one with [targets."*"]'
    ]
    every = text + '[targets."*"]\nevidence = "not-run"\n'
    assert judge(policy(every), manifest, (), NOW) == []
    missing = every + '[targets.directml]\nevidence = "not-run"\n'
    assert rules(judge(policy(missing), manifest, (), NOW)) == [
        "targets.directml: the bundle has it not; it has onnxruntime, coreml, executorch"
    ]


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ('[[sources]]\nhub = "tiny-bert"', "sources: tiny-bert (folder) is not one that is allowed"),
        ('[[sources]]\n[sources.files]\n"model.safetensors" = "' + "0" * 64 + '"', "sources: "),
        ('[[sources]]\n[sources.files]\n"other" = "HASH"', "sources: "),
        ('[[sources]]\n[sources.files]\n"model.safetensors" = "HASH"', ""),
    ],
)
def test_sources_by_hash(manifest: Manifest, change: str, broken: str) -> None:
    digest = next(f.sha256 for f in manifest.source.files if f.name == "model.safetensors")
    found = rules(judge(policy(WITHOUT_EXECUTORCH + change.replace("HASH", digest)), manifest, (), NOW))
    assert found == [] if not broken else found[0].startswith(broken)


@pytest.mark.parametrize(
    ("hub", "revision", "allowed"),
    [
        ("BAAI/bge-small", None, True),
        ("BAAI/*", None, True),
        ("BAAI/bge-*", "a" * 40, True),
        ("BAAI/bge-small", "b" * 40, False),
        ("*", None, False),
        ("baai/bge-small", None, False),
        ("BAAI/bge", None, False),
        ("Other/*", None, False),
    ],
)
def test_sources_of_the_hub(manifest: Manifest, hub: str, revision: str | None, allowed: bool) -> None:
    source = manifest.source.model_copy(update={"kind": "hub", "location": "BAAI/bge-small", "revision": "a" * 40})
    rule = f'[[sources]]\nhub = "{hub}"\n' + (f'revision = "{revision}"\n' if revision else "")
    found = judge(policy(WITHOUT_EXECUTORCH + rule), manifest.model_copy(update={"source": source}), (), NOW)
    assert (found == []) is allowed
    unpinned = source.model_copy(update={"revision": None})
    if revision is not None:  # a missing fact is a broken rule
        assert judge(policy(WITHOUT_EXECUTORCH + rule), manifest.model_copy(update={"source": unpinned}), (), NOW)


@pytest.mark.parametrize(
    ("line", "changes", "broken"),
    [
        ("max_age_days = 60", {}, ""),
        ("max_age_days = 10.5", {}, "max_age_days: it was made at 2026-05-01T00:00:00Z, more than 10.5 days ago"),
        ("max_age_days = 60", {"created": "2027-01-01T00:00:00Z"}, "max_age_days: it was made in the future"),
        ("max_age_days = 60", {"created": "May"}, "max_age_days: 'May' is not a time"),
        ('planish = ">=0.1"', {"planish": "0.1.0"}, ""),
        ('planish = ">=0.2"', {"planish": "0.1.0"}, "planish: version 0.1.0 is not >=0.2"),
        ('planish = ">=0.1"', {"planish": "unknown"}, "planish: version unknown is not >=0.1"),
        ('licenses = ["Apache-2.0"]', {}, ""),
        ('licenses = ["MIT"]', {}, "licenses: apache-2.0 is not one of MIT"),
        ('recipes = ["int8", "int4"]', {}, ""),
    ],
)
def test_facts_of_the_whole(manifest: Manifest, line: str, changes: dict[str, Any], broken: str) -> None:
    found = rules(judge(policy(f"{line}\n{WITHOUT_EXECUTORCH}"), manifest.model_copy(update=changes), (), NOW))
    assert found == [] if not broken else found[0].startswith(broken), found


def test_licence_that_nobody_named(manifest: Manifest) -> None:
    source = manifest.source.model_copy(update={"license": manifest.source.license.model_copy(update={"id": None})})
    found = judge(policy(f'licenses = ["MIT"]\n{GOOD}'), manifest.model_copy(update={"source": source}), (), NOW)
    assert rules(found)[0] == "licenses: none named is not one of MIT"


@pytest.mark.parametrize(
    ("checks", "broken"),
    [
        ('["quality"]', "targets.onnxruntime.checks: quality is nowhere to be found"),
        ('["lowering", "weights"]', "targets.onnxruntime.checks: weights is nowhere to be found"),
        ('["device"]', "targets.onnxruntime.checks: device is nowhere to be found"),
    ],
)
def test_checks_that_did_not_pass(manifest: Manifest, checks: str, broken: str) -> None:
    text = WITHOUT_EXECUTORCH.replace('["capture", "lowering"]', checks)
    assert rules(judge(policy(text), manifest, (), NOW)) == [broken]


def test_failed_gate_is_never_kept(manifest: Manifest) -> None:
    from planish.bundle.verdicts import entry_of

    failed = entry_of(Failed("quality", Evidence.EXECUTED, "too far"))
    unrun = entry_of(NotRun("lowering", "nothing here runs it"))
    coreml = manifest.targets["coreml"].model_copy(update={"verdicts": (failed, unrun)})
    changed = manifest.model_copy(
        update={"targets": {**manifest.targets, "coreml": coreml}, "verdicts": (*manifest.verdicts, failed)}
    )
    assert rules(judge(policy(WITHOUT_EXECUTORCH), changed, (), NOW)) == [
        "result: the program failed quality: too far",
        "targets.coreml.result: it failed quality: too far",
        "targets.coreml.evidence: emulated is asked, not-run is what there is",
    ]


def test_evidence_of_devices(manifest: Manifest, tmp_path: Path) -> None:
    asked = policy(WITHOUT_EXECUTORCH.replace('"emulated"', '"executed"\nchecks = ["device"]'))
    signer = Signer("key", "phone.pub.pem", "f" * 64)
    good = Judged("coreml", Passed("device", Evidence.EXECUTED, (), "Pocket 3"), signer, tmp_path)
    assert judge(asked, manifest, (good,), NOW) == []
    for other in (
        replace(good, target="onnxruntime"),
        replace(good, signer=None),
        replace(good, verdict=NotRun("device", "not trusted")),
        replace(good, verdict=Passed("device", Evidence.EMULATED)),
    ):
        assert judge(asked, manifest, (other,), NOW), other
    bad = replace(good, verdict=Failed("device", Evidence.EXECUTED, "wrong numbers"))
    found = rules(judge(policy(WITHOUT_EXECUTORCH), manifest, (good, bad), NOW))
    assert found == ["targets.coreml.evidence: a result of a device failed: wrong numbers"]


@pytest.mark.parametrize(
    ("asked", "kept"), [("executed", False), ("executed-arm64-emulated", True), ("emulated", True), ("not-run", True)]
)
def test_an_emulated_cpu_is_less_than_a_real_one(manifest: Manifest, tmp_path: Path, asked: str, kept: bool) -> None:
    run = Passed("device", Evidence.EXECUTED_ARM64_EMULATED, (), "ExecuTorch, emulated by QEMU")
    sent = Judged("coreml", run, Signer("key", "phone.pub.pem", "f" * 64), tmp_path)
    broken = rules(judge(policy(WITHOUT_EXECUTORCH.replace('"emulated"', f'"{asked}"')), manifest, (sent,), NOW))
    is_less = "targets.coreml.evidence: executed is asked, executed-arm64-emulated is what there is"
    assert broken == ([] if kept else [is_less])


def test_grades_are_ordered(manifest: Manifest, tmp_path: Path) -> None:
    signer = Signer("key", "phone.pub.pem", "f" * 64)
    grades = list(Evidence)  # from the strongest
    for asked in grades:
        for sent in grades:
            rule = policy(WITHOUT_EXECUTORCH.replace('"emulated"', f'"{asked}"'))
            result = Judged("coreml", Passed("device", sent), signer, tmp_path)
            best = min(grades.index(sent), grades.index(Evidence.EMULATED))
            assert (judge(rule, manifest, (result,), NOW) == []) is (best <= grades.index(asked)), (asked, sent)


def test_devices_count_only_with_their_keys(
    bundle: Path, write: Callable[[str], Path], phone: Pair, phones: Any, tmp_path: Path
) -> None:
    from bundles import runner

    from planish.trust.evidence import accept, attest
    from planish.trust.sign import KeySigner
    from planish.verify.lowering import Execution

    execution = Execution(1, 60.0, {"coreml": runner(tmp_path)})
    attest(bundle, "coreml", KeySigner(phone.private), tmp_path / "result", execution, keep_failed=False)
    accept(bundle, tmp_path / "result", phones, keep_failed=False)
    text = WITHOUT_EXECUTORCH.replace('"emulated"', '"executed"')
    (broken,) = verify(bundle, write(text)).failed
    assert broken[1].reason == "targets.coreml.evidence: executed is asked, emulated is what there is"
    assert verify(bundle, write(text + '[evidence]\nkeys = ["phone.pub.pem"]\n')).failed == ()
    assert verify(bundle, write(text + '[evidence]\nkeys = ["owner.pub.pem"]\n')).failed


WRONG = [
    ("", "version is missing"),
    ("version = 2", "version: Input should be 1"),
    (GOOD.replace("version = 1", ""), "version is missing"),
    (GOOD.replace("[signature]", "[signatur]"), "did you mean 'signature'"),
    (GOOD.replace("keys =", "key ="), "did you mean 'keys'"),
    (GOOD.replace('keys = ["owner.pub.pem"]', ""), "name somebody: keys, certificates or identities"),
    (GOOD.replace('keys = ["owner.pub.pem"]', "keys = []"), "name somebody"),
    (
        GOOD.replace('keys = ["owner.pub.pem"]', 'keys = "owner.pub.pem"'),
        r"signature\.keys: Input should be a valid tuple",
    ),
    (GOOD.replace('keys = ["owner.pub.pem"]', 'keys = ["none.pem"]'), "key cannot be read"),
    (GOOD.replace("[signature]", '[signature]\nsubjects = ["CN=x"]'), "name certificates, too"),
    (GOOD.partition("[targets")[0], "targets is missing"),
    (GOOD.replace("targets.coreml", "targets.coremll"), "did you mean 'coreml'"),
    (GOOD.replace('"executed"', '"certain"'), r"targets\.onnxruntime\.evidence"),
    (GOOD.replace('evidence = "executed"', ""), r"targets\.onnxruntime\.evidence is missing"),
    ('recipes = ["int9"]\n' + GOOD, "unknown name 'int9'"),
    ("recipes = []\n" + GOOD, "an empty list allows nothing"),
    ("sources = []\n" + GOOD, "an empty list allows nothing"),
    (GOOD + "[[sources]]\n", "name a hub id, or files with their hashes"),
    (GOOD + f'[[sources]]\nrevision = "{"a" * 40}"\n', "name a hub id"),
    (GOOD + '[[sources]]\nhub = "a/b"\nrevision = "main"\n', r"sources\.0\.revision"),
    ('planish = "new"\n' + GOOD, "planish: Invalid specifier"),
    ("max_age_days = 0\n" + GOOD, "greater than 0"),
    ("max_age_days = nan\n" + GOOD, "max_age_days"),
    ('max_age_days = "60"\n' + GOOD, "max_age_days"),
    ("version = ", "not valid TOML"),
    ("version = 1\nversion = 1\n", "not valid TOML"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_wrong_policies(write: Callable[[str], Path], text: str, message: str) -> None:
    with pytest.raises(PlanishError, match=message):
        load_policy(write(text))


def test_all_mistakes_at_once(write: Callable[[str], Path]) -> None:
    with pytest.raises(PolicyError) as caught:
        load_policy(write("surprise = 1\n" + GOOD.replace('"executed"', '"certain"').replace("version = 1", "")))
    assert len(caught.value.problems) == 3
    assert "3 things are wrong" in caught.value.what


def test_what_is_no_policy(tmp_path: Path) -> None:
    (tmp_path / "bin").write_bytes(b"\xff\xfe")
    (tmp_path / "big").write_bytes(b"#" * 300_000)
    for name, message in {"bin": "not UTF-8", "big": "too large", "none": "No such file", ".": "directory"}.items():
        with pytest.raises(PlanishError, match=message):
            load_policy(tmp_path / name)
