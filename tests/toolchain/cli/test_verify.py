"""planish verify: exit codes and output, on a fake report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import planish.verify
from planish.compiled import TargetResult
from planish.verdict import Failed, Metric, Passed
from planish.verify import BundleReport
from planish_passes.errors import PlanishError
from planish_targets.contract import Artifact, Evidence

HASHES = Passed("hashes", Evidence.EXECUTED)
RAN = Passed("lowering", Evidence.EXECUTED, (Metric("max_abs", 2e-6),), "Fake CPU")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What verify_bundle was asked; `report` in it is the answer."""
    (tmp_path / "art").mkdir()
    (tmp_path / "art" / "f").write_bytes(bytes(2000))
    artifact = Artifact("coreml", tmp_path / "art", "f")
    seen: dict[str, Any] = {"report": BundleReport((HASHES,), (TargetResult("coreml", artifact, (RAN,)),))}

    def verify_bundle(path: Path, **rest: Any) -> BundleReport:
        seen.update(rest, path=path)
        if isinstance(seen["report"], Exception):
            raise seen["report"]
        return seen["report"]  # type: ignore[no-any-return]

    monkeypatch.setattr(planish.verify, "verify_bundle", verify_bundle)
    return seen


def test_passes(run: Any, asked: dict[str, Any]) -> None:
    result = run("verify", "x.planish", "-t", "coreml", "--runner", "coreml=ssh mac", "--threads", 2, "--timeout", 5)
    assert result.exit_code == 0
    row = next(line for line in result.stdout.splitlines() if line.startswith("coreml"))
    assert " ".join(row.split()) == "coreml 2.0 kB executed 2.0e-06 - passed"
    assert (asked["path"], asked["targets"], asked["runner"]) == (Path("x.planish"), ("coreml",), {"coreml": "ssh mac"})
    assert (asked["threads"], asked["timeout"]) == (2, 5.0)


def test_all_targets_when_none_is_named(run: Any, asked: dict[str, Any]) -> None:
    run("verify", "x.planish")
    assert asked["targets"] is None


def test_fails(run: Any, asked: dict[str, Any], told: Any) -> None:
    asked["report"] = BundleReport((Failed("hashes", Evidence.EXECUTED, "changed: a/b"),), ())
    result = run("verify", "x.planish")
    assert result.exit_code == 3
    assert told(result)[1] == "bundle hashes"
    assert "changed: a/b" in result.stdout


def test_json(run: Any, asked: dict[str, Any]) -> None:
    data = json.loads(run("verify", "x.planish", "--json").stdout)
    assert data["ok"] is True
    assert data["targets"][0]["result"] == "passed"
    asked["report"] = PlanishError("no bundle", "x.planish", "give one")
    result = run("verify", "x.planish", "--json")
    assert (result.exit_code, json.loads(result.stdout)["error"]["what"]) == (1, "no bundle")


@pytest.mark.parametrize("args", [["-t", "coremll"], ["--runner", "coremll=ssh"]])
def test_unknown_target(run: Any, asked: dict[str, Any], told: Any, args: list[str]) -> None:
    result = run("verify", "x.planish", *args)
    assert result.exit_code == 1
    assert "coreml" in told(result)[2]


def test_runner_that_no_shell_would_take(run: Any, asked: dict[str, Any], told: Any) -> None:
    result = run("verify", "x.planish", "--runner", "coreml=ssh 'mac")
    assert result.exit_code == 1
    assert told(result)[0] == "The command of coreml cannot be split into words: no closing quotation."


def test_no_bundle_there(run: Any, told: Any) -> None:
    assert run("verify").exit_code == 2
    result = run("verify", "nowhere.planish")
    assert result.exit_code == 1
    assert told(result)[1] == "nowhere.planish"
