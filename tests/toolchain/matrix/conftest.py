"""Matrix files, installations and models that need no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from matrices import NAMES

from planish.matrix.file import Job, Matrix, load_matrix


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with the files of a model, all an hour old."""
    folder = tmp_path / "minilm"
    (folder / "1_Pooling").mkdir(parents=True)
    contents = {
        "config.json": "{}",
        "tokenizer.json": "[]",
        "source.spm": "x",
        "1_Pooling/config.json": "{}",
        "a.py": "",
    }
    for name, text in contents.items():
        (folder / name).write_text(text)
    (folder / "model.safetensors").write_bytes(bytes(1000))
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    return folder


@pytest.fixture
def matrix(tmp_path: Path) -> Callable[[str], Matrix]:
    """The matrix of a text."""

    def load(text: str) -> Matrix:
        file = tmp_path / "planish.toml"
        file.write_text(text)
        return load_matrix(file, NAMES)

    return load


@pytest.fixture
def job(model: Path, matrix: Callable[[str], Matrix]) -> Job:
    """One job."""
    return matrix(f'output = "dist/minilm.planish"\nmodel = {json.dumps(str(model))}\nrecipe = "int8"').jobs[0]
