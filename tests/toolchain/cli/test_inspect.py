"""planish inspect: what is printed, and --view."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.touch()
    return path


def test_artifact(run: Any, artifact: Path) -> None:
    result = run("inspect", artifact, "-t", "onnxruntime,directml")
    assert result.exit_code == 0
    assert "onnxruntime, directml  model.onnx, Fake 1, 4.1 kB" in result.stdout.replace("\n", "")
    for text in (
        "x: float32[1, sequence]",
        "4 of 2 types: MatMul 3, Add 1",
        "float32 2.0 kB",
        "50% of 2",
        "1 x Add (CPU)",
    ):
        assert text in result.stdout


def test_artifact_in_json(run: Any, artifact: Path) -> None:
    data = json.loads(run("inspect", artifact, "-t", "onnxruntime", "--json").stdout)
    assert data["kind"] == "artifact"
    assert data["artifacts"][0]["ops"] == {"MatMul": 3, "Add": 1}
    assert data["artifacts"][0]["placements"][0]["fallbacks"] == {"Add (CPU): no kernel": 1}


def test_refused_model(run: Any, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    (tmp_path / "m" / "pytorch_model.bin").touch()
    result = run("inspect", "m")
    assert result.exit_code == 0
    assert "BertModel (bert)" in result.stdout
    assert "no: The weights are a Python pickle" in result.stdout
    data = json.loads(run("inspect", "m", "--json").stdout)
    assert (data["kind"], data["supported"]) == ("model", False)
    assert "save_pretrained" in data["refusal"]["hint"]


@pytest.mark.parametrize("path", ["/no/such/thing", "some.txt"])
def test_errors(run: Any, told: Any, path: str) -> None:
    Path("some.txt").touch()
    result = run("inspect", path, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["what"] == told(result)[0]


def test_view(run: Any, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    fake = SimpleNamespace(start=lambda path, browse: opened.append(path), wait=lambda: None)
    monkeypatch.setitem(sys.modules, "netron", fake)
    assert run("inspect", artifact, "--view").exit_code == 0
    package = Path("m.mlpackage")
    (package / "Data").mkdir(parents=True)
    manifest = {"rootModelIdentifier": "A", "itemInfoEntries": {"A": {"path": "com.apple.CoreML/model.mlmodel"}}}
    (package / "Manifest.json").write_text(json.dumps(manifest))
    run("inspect", package, "--view", "-t", "coreml")
    assert [Path(p).name for p in opened] == ["model.onnx", "model.mlmodel"]


def test_view_without_netron(run: Any, artifact: Path, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "netron", None)
    result = run("inspect", artifact, "--view")
    assert (result.exit_code, told(result)[2]) == (1, "pip install netron")
    Path("bad.mlpackage").mkdir()
    monkeypatch.setitem(sys.modules, "netron", SimpleNamespace())
    assert "damaged" in told(run("inspect", "bad.mlpackage", "--view", "-t", "coreml"))[2]
