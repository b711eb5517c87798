"""Folders of processes: of those that live, and of those that were killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from planish.bundle.owned import make, sweep


def test_a_folder_of_a_living_process_stays_and_goes_when_it_is_killed(tmp_path: Path) -> None:
    ready, say = os.pipe()
    child = os.fork()
    if child == 0:
        folder, _ = make(tmp_path, ".work-")
        (folder / "half").write_text("x")
        os.write(say, b"!")
        signal.pause()
        os._exit(3)
    try:
        assert os.read(ready, 1) == b"!"
        sweep(tmp_path, ".work-")
        assert [len(list(p.iterdir())) for p in tmp_path.iterdir()] == [1]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(say)
    sweep(tmp_path, ".work-")
    assert list(tmp_path.iterdir()) == []


def test_only_folders_of_that_prefix_go(tmp_path: Path) -> None:
    kept = [tmp_path / ".planish-build", tmp_path / "mine"]
    for folder in kept:
        folder.mkdir()
    (tmp_path / ".work-file").touch()
    (tmp_path / ".work-link").symlink_to(kept[1], target_is_directory=True)
    (tmp_path / ".work-0123").mkdir()
    sweep(tmp_path, ".work-")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".planish-build", ".work-file", ".work-link", "mine"]
