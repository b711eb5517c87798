"""Hashes are kept, and never for a file that could have changed."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from planish.matrix import hashes
from planish.matrix.hashes import Hashes


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that was written long ago, as far as the clock of `hashes` tells."""
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    monkeypatch.setattr(hashes.time, "time", lambda: os.stat(path).st_ctime + 100)
    return path


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that are read from now on."""
    seen: list[str] = []
    real = hashlib.file_digest

    def digest(file: object, kind: str) -> object:
        seen.append(Path(file.name).name)  # type: ignore[attr-defined]
        return real(file, kind)  # type: ignore[type-var]

    monkeypatch.setattr(hashes.hashlib, "file_digest", digest)
    return seen


def test_an_unchanged_file_is_read_once(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "kept.json"
    first = Hashes(kept)
    digest = first.of(old)
    first.keep()
    seen = reads(monkeypatch)
    assert Hashes(kept).of(old) == digest == hashlib.sha256(b"one").hexdigest()
    assert seen == []


def test_a_change_that_size_and_date_hide_is_seen(old: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    before = old.stat()
    known = Hashes(kept)
    known.of(old)
    known.keep()
    time.sleep(0.02)  # file systems count in steps of up to 10 ms
    old.write_bytes(b"two")
    os.utime(old, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert Hashes(kept).of(old) == hashlib.sha256(b"two").hexdigest()


def test_a_file_that_has_just_been_written_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two writes within one step of the file system's clock look like one."""
    path = tmp_path / "new"
    path.write_bytes(b"one")
    known = Hashes(tmp_path / "kept.json")
    known.of(path)
    seen = reads(monkeypatch)
    known.of(path)
    assert seen == ["new"]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"x": 3}', b"\xff"])
def test_a_damaged_list_costs_reading(old: Path, tmp_path: Path, damage: bytes) -> None:
    kept = tmp_path / "kept.json"
    kept.write_bytes(damage.replace(b"x", os.fsencode(old)))
    assert Hashes(kept).of(old) == hashlib.sha256(b"one").hexdigest()


def test_files_that_are_gone_are_forgotten(old: Path, tmp_path: Path) -> None:
    known = Hashes(tmp_path / "kept.json")
    known.of(old)
    old.unlink()
    known.keep()
    assert (tmp_path / "kept.json").read_bytes() == b"{}"
