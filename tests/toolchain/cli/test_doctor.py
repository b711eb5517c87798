"""planish doctor and planish targets: output and exit codes."""

from __future__ import annotations

import json
from typing import Any

from planish_targets import registry


def test_ready(run: Any) -> None:
    result = run("doctor", "-t", "onnxruntime")
    assert result.exit_code == 0
    assert result.stdout.rstrip().endswith("ready")
    assert "Fake CPU" in result.stdout


def test_missing_package(run: Any, targets: Any) -> None:
    targets["onnxruntime"].requires["no-such-package"] = ">=1"
    result = run("doctor", "-t", "onnxruntime")
    assert result.exit_code == 1
    assert "pip install 'planish[fake]'" in result.stdout
    assert result.stdout.rstrip().endswith("not ready")


def test_json(run: Any, targets: Any) -> None:
    targets["directml"].requires["packaging"] = "<1"
    result = run("doctor", "--json")
    data = json.loads(result.stdout)
    assert (result.exit_code, data["ok"]) == (1, False)
    told = {t["target"]: t for t in data["targets"]}
    assert told["directml"]["findings"][0]["mend"] == "pip install 'packaging<1'"
    assert told["coreml"]["evidence"] is None
    assert told["onnxruntime"]["evidence"] == "executed"
    assert data["machine"]["disk_free"] > 0


def test_unknown_target(run: Any, told: Any) -> None:
    result = run("doctor", "-t", "coremll", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["where"] == "--target"


def test_targets(run: Any, targets: Any) -> None:
    targets["directml"].requires["no-such-package"] = ">=1"
    result = run("targets")
    assert result.exit_code == 0
    assert "pip install 'planish[fake]'" in result.stdout
    assert "no interpreter" in result.stdout
    assert "int8" in result.stdout


def test_targets_in_json(run: Any) -> None:
    data = json.loads(run("targets", "--json").stdout)
    assert [t["target"] for t in data["targets"]] == list(registry.targets())
    assert data["targets"][0]["bits"] == [8]
    assert {r["recipe"] for r in data["recipes"]} >= {"float", "int8"}
