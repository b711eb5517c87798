"""planish cache: what is kept, what is damaged, what is removed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matrices import bundle, entry

from planish.matrix.store import Store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The user's cache, with one bundle."""
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path / "cache"))
    at = bundle(tmp_path / "one.planish")
    made = Store(tmp_path / "cache")
    made.store(entry(at), at)
    return made


def test_what_is_kept(run: Any, store: Store) -> None:
    result = run("cache")
    assert (result.exit_code, result.stdout) == (0, f"{store.root}: 1 bundles, 282 B\n")
    data = json.loads(run("cache", "--json").stdout)
    assert (data["bundles"], data["bytes"], data["damaged"]) == (1, store.usage()[1], [])


def test_pruning(run: Any, store: Store) -> None:
    assert "removed 0 B" in run("cache", "--prune", "1MB").stdout
    assert "0 bundles, 0 B\nremoved 282 B" in run("cache", "--prune", "0").stdout
    assert store.usage() == (0, 0)
    assert run("cache", "--prune", "much").exit_code == 2


def test_damage(run: Any, store: Store) -> None:
    assert run("cache", "--check").exit_code == 0
    broken = next(path for path in (store.root / "objects").rglob("*") if path.is_file())
    broken.write_bytes(b"rubbish")
    result = run("cache", "--check")
    assert result.exit_code == 1
    assert f"damaged, and removed: {broken}" in result.stdout
    assert run("cache", "--check").exit_code == 0
