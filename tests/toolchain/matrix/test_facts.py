"""What an installation is: asked once, asked again when it changed."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from planish.matrix import facts
from planish.matrix.facts import CORE, installed, read_facts, source_digest
from planish.request_checks import installed_names

# Of planish's own dependencies: these draw, ask or fetch, and no byte of a bundle follows from them.
ASIDE = {"fsspec", "rich", "tomlkit", "typer"}


def test_facts_are_those_of_the_targets(tmp_path: Path) -> None:
    found = read_facts(tmp_path)
    assert found.names == installed_names()
    assert set(found.packages) == set(found.variables) == {"", *found.names.targets}
    assert {"onnx", "onnxruntime", "onnxscript", "onnx-ir"} <= set(found.packages["onnxruntime"])  # onnxscript needs it
    assert {"torch", "tokenizers", "numpy"} <= set(found.packages[""])
    assert "QNN_SDK_ROOT" in found.variables["executorch:qnn"]
    assert "SOURCE_DATE_EPOCH" in found.variables[""]
    assert "random letters" in found.varies["coreai"]["*"]


def test_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_facts(tmp_path)
    monkeypatch.setattr(facts, "_ask", lambda *_: pytest.fail("asked again"))
    assert read_facts(tmp_path) == first


@pytest.mark.parametrize("how", ["package", "code", "damage"])
def test_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    first = read_facts(tmp_path)
    asked: list[str] = []
    monkeypatch.setattr(facts, "_ask", lambda *_: asked.append(how) or first)
    if how == "package":
        (tmp_path / "site" / "Some_Package-1.0.dist-info").mkdir(parents=True)
        monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
        assert installed()["some-package"] == "1.0"
    elif how == "code":
        monkeypatch.setattr(facts, "source_digest", lambda: "1" * 64)
    else:
        next(tmp_path.glob("*.json")).write_text("{")
    assert read_facts(tmp_path) == first
    assert asked == [how]


def test_the_code_is_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "a_package_for_this_test"
    (package / "__pycache__").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "style.css").write_text("a")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(facts, "_SOURCES", (package.name,))
    seen = [source_digest()]
    (package / "__pycache__" / "x.pyc").write_text("")
    assert source_digest() == seen[0]
    for name, text in (("style.css", "b"), ("new.py", ""), ("__init__.py", "#")):
        (package / name).write_text(text)
        seen.append(source_digest())
    assert len(set(seen)) == 4


def test_every_dependency_of_planish_is_an_input_or_is_named_here() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    names = {line.split(">")[0].split("[")[0] for line in project["dependencies"]}
    assert names == {*CORE} | ASIDE
