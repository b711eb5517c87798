"""planish doctor and planish targets: output and exit codes."""

from __future__ import annotations

import json
from typing import Any

from planish_targets import registry
from planish_targets.contract import Capabilities, Missing, Unavailable


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


def with_variants(targets: Any) -> None:
    fake: Any = type(targets["executorch"])
    lacking = fake("executorch:sdk")
    object.__setattr__(lacking, "missing", lambda: Missing("the SDK is not there", "set SDK_ROOT"))
    narrow = Capabilities(frozenset(), bits=frozenset())
    quiet = fake("executorch:gpu", runs=Unavailable("no GPU here"), capabilities=narrow)
    object.__setattr__(targets["executorch"], "variants", {v.name: v for v in (quiet, lacking)})


def test_doctor_lists_variants_and_tells_more_when_they_are_named(run: Any, targets: Any) -> None:
    with_variants(targets)
    result = run("doctor")
    assert "executorch:sdk" in result.stdout
    assert "set SDK_ROOT" not in result.stdout
    told = {t["target"]: t for t in json.loads(run("doctor", "--json").stdout)["variants"]}
    assert (told["executorch:gpu"]["ok"], told["executorch:sdk"]["ok"]) == (True, False)
    named = run("doctor", "-t", "executorch:sdk")
    assert named.exit_code == 1
    assert "set SDK_ROOT" in named.stdout


def test_targets_lists_variants_apart(run: Any, targets: Any) -> None:
    with_variants(targets)
    shown = run("targets").stdout
    assert shown.index("executorch:gpu") > shown.index("variants") > shown.index("onnxruntime")
    assert "float weights only" in shown
    assert "no GPU here" in shown
    assert "the SDK is not there; set SDK_ROOT" in shown
    data = json.loads(run("targets", "--json").stdout)
    assert [v["target"] for v in data["variants"]] == ["executorch:gpu", "executorch:sdk"]
    assert data["variants"][0]["recipes"] == ["float"]


def test_an_unknown_variant_is_refused_with_the_known_ones(run: Any, targets: Any, told: Any) -> None:
    with_variants(targets)
    _, _, hint = told(run("compile", "m", "-t", "executorch:metal"))
    assert "variants of executorch: executorch:gpu, executorch:sdk" in hint
