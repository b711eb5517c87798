"""What inspect finds at a path."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import planish.bundle
from planish.inspect import ArtifactFacts, BundleFacts, ModelFacts, inspect
from planish_passes.errors import PlanishError
from planish_targets import registry
from planish_targets.contract import Artifact, Placed, Placement

TOLD = {
    "format": "F",
    "ops": {"A": 1, "B": 5},
    "dtypes": {"int8": 3},
    "inputs": [{"name": "x", "dtype": "int64", "shape": ["batch", 4]}],
    "outputs": ["y"],
    "bytes": 7,
}


class FakeTarget:
    """Knows files with its suffix; `seen` holds the artifacts whose placement was asked."""

    def __init__(self, name: str, suffix: str, problem: str = "") -> None:
        self.name, self.suffix, self.problem = name, suffix, problem
        self.seen: list[Artifact] = []

    def inspect(self, path: Path) -> dict[str, Any] | None:
        return TOLD if path.suffix == self.suffix else None

    def placement(self, artifact: Artifact) -> Placement:
        self.seen.append(artifact)
        if self.problem:
            raise PlanishError(self.problem, "w", "h")
        nodes = [Placed("1", "A", "fallback", "CPU", "why"), Placed("2", "A", "fallback", "CPU", "why")]
        return Placement("table", (*nodes, Placed("3", "B", "accelerated", "GPU")), ("too big",), ("advice",))


@pytest.fixture(autouse=True)
def targets(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeTarget]:
    found = {
        "one": FakeTarget("one", ".onnx"),
        "two": FakeTarget("two", ".onnx", "no options"),
        "pkg": FakeTarget("pkg", ".pkg"),
    }
    monkeypatch.setattr(registry, "targets", lambda: found)
    return found


def test_one_file_of_two_targets(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    (facts,) = artifacts(tmp_path / "m.onnx")
    assert (facts.targets, facts.ops, facts.inputs) == (("one", "two"), {"B": 5, "A": 1}, ("x: int64[batch, 4]",))
    (placement,) = facts.placements
    assert placement.share == pytest.approx(1 / 3)
    assert (placement.target, placement.fallbacks, placement.violations) == ("one", {"A (CPU): why": 2}, ("too big",))
    assert facts.unplaced == {"two": "no options"}
    assert artifacts(tmp_path / "m.onnx", "two")[0].targets == ("two",)


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    (tmp_path / "n.pkg").mkdir()
    (tmp_path / "readme.txt").touch()
    assert [a.path.name for a in artifacts(tmp_path)] == ["m.onnx", "n.pkg"]
    assert [a.path.name for a in artifacts(tmp_path / "n.pkg")] == ["n.pkg"]


def artifacts(path: Path, *asked: str) -> tuple[ArtifactFacts, ...]:
    facts = inspect(str(path), asked)
    assert isinstance(facts, tuple)
    return facts


def test_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, targets: dict[str, FakeTarget]) -> None:
    (tmp_path / "manifest.json").touch()
    made = Artifact("one", tmp_path / "targets" / "one", "m.onnx", {"precision": "float16"})
    entries = {"one": SimpleNamespace(artifact=object()), "two": SimpleNamespace(artifact=None)}
    bundle = SimpleNamespace(
        manifest=SimpleNamespace(targets=entries),
        artifact=lambda name: {"one": made}[name],
        signature=None,
        evidence=lambda: (),
    )
    monkeypatch.setattr(planish.bundle, "open_bundle", lambda path: bundle)
    facts = inspect(str(tmp_path))
    assert isinstance(facts, BundleFacts)
    assert list(facts.artifacts) == ["one"]
    assert targets["one"].seen == [made]  # with the options that the compile recorded


def test_model(tmp_path: Path) -> None:
    config = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.int8)}, tmp_path / "model.safetensors")
    facts = inspect(str(tmp_path))
    assert isinstance(facts, ModelFacts)
    assert (facts.task, facts.architecture, facts.origin) == ("feature-extraction", "BertModel", "folder")
    assert (facts.parameters, facts.weight_bytes, facts.dtypes) == (17, 53, {"float32": 48, "int8": 5})
    assert facts.config["hidden_size"] == 8
    assert facts.refusal is None


def test_refused_models_are_described(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "martian", "architectures": [3]}')
    facts = inspect(str(tmp_path))
    assert isinstance(facts, ModelFacts)
    assert facts.refusal is not None
    assert "martian" in facts.refusal.what
    assert list(facts.files) == ["config.json"]


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_unreadable_configs(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(PlanishError):
        inspect(str(tmp_path))


def test_nothing_known(tmp_path: Path) -> None:
    (tmp_path / "x.txt").touch()
    for path in (tmp_path / "x.txt", tmp_path, tmp_path / "gone"):
        with pytest.raises(PlanishError):
            inspect(str(path))
    with pytest.raises(PlanishError, match="unknown target"):
        inspect(str(tmp_path), ["nope"])
