"""The page cache is emptied, or it is said that it was not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from planish.bench import cold

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell what is in memory")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "weights.bin").write_bytes(b"x" * (4 << 20))
    (tmp_path / "empty").touch()
    return tmp_path


def test_what_was_just_written_is_in_memory(folder: Path) -> None:
    assert cold.resident(folder) == 1.0
    assert not cold.is_cold(1.0)


def test_it_can_be_dropped_and_comes_back(folder: Path) -> None:
    left = cold.drop(folder)
    if not cold.is_cold(left):
        pytest.skip("this file system keeps its pages")
    (folder / "inner" / "weights.bin").read_bytes()
    assert cold.resident(folder) == 1.0


def test_no_files_no_statement(tmp_path: Path) -> None:
    assert cold.resident(tmp_path) is None
    assert not cold.is_cold(None)
