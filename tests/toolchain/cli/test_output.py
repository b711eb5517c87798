"""Names of bundles, and the folder they are made in."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from planish.cli.output import workspace
from planish.naming import bundle_name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("BAAI/bge-small", "bge-small-int8.planish"),
        ("bert", "bert-int8.planish"),
        ("x/llama.gguf", "llama-int8.planish"),
        ("a" * 5000, "a" * 5000 + "-int8.planish"),
        ("/", "model-int8.planish"),
    ],
)
def test_names(model: str, name: str) -> None:
    assert bundle_name(model, "int8") == name


def test_names_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--org--mini" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    assert bundle_name(str(snapshot), "float") == "mini-float.planish"
    (tmp_path / "mine" / "model").mkdir(parents=True)
    assert bundle_name(str(tmp_path / "mine" / "model"), "float") == "mine-float.planish"
    monkeypatch.chdir(tmp_path / "mine")
    assert bundle_name(".", "float") == "mine-float.planish"


def test_workspace_is_beside_the_bundle_and_goes(tmp_path: Path) -> None:
    with workspace(tmp_path / "a" / "b.planish") as folder:
        assert folder.parent == tmp_path / "a"
    assert list((tmp_path / "a").iterdir()) == []


def test_workspace_goes_when_terminated(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended, workspace(tmp_path / "b.planish"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143
    assert list(tmp_path.iterdir()) == []
