"""The same model, compiled in two processes with other hash seeds, gives the same bytes on every target."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import FAMILIES, random_model

TARGETS = ("coreml", "directml", "executorch", "onnxruntime")


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two bundles of one model."""
    root = tmp_path_factory.mktemp("twice")
    random_model(FAMILIES["bert"]()).save_pretrained(root / "m")
    options = ["-r", "int8", "-t", ",".join(TARGETS), "--task", "feature-extraction", "--no-verify", "-q"]
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "planish.cli", "compile", str(root / "m"), *options]
        at = root / seed / "m.planish"
        env = {**os.environ, "PYTHONHASHSEED": seed, "SOURCE_DATE_EPOCH": "0"}
        subprocess.run([*command, "-o", str(at)], env=env, check=True, capture_output=True)
    return root / "1" / "m.planish", root / "2" / "m.planish"


def files(bundle: Path, folder: str) -> dict[str, bytes]:
    root = bundle / folder
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("target", TARGETS)
def test_artifacts_are_equal_bit_for_bit(twice: tuple[Path, Path], target: str) -> None:
    one, two = (files(bundle, f"targets/{target}") for bundle in twice)
    assert one
    assert list(one) == list(two)
    assert [name for name in one if one[name] != two[name]] == []


def test_nothing_in_an_artifact_names_a_place(twice: tuple[Path, Path]) -> None:
    for bundle in twice:
        place = str(bundle.parent).encode()
        assert [name for name, data in files(bundle, ".").items() if place in data] == []


def test_all_else_is_equal_but_what_was_measured(twice: tuple[Path, Path]) -> None:
    """Without checks nothing is measured, and with a date that is given nothing differs at all."""
    one, two = (files(bundle, ".") for bundle in twice)
    assert [name for name in one if one[name] != two[name]] == []
