"""Whatever happens while a bundle is replaced: the old one stands, or the new one."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from planish.bundle import open_bundle, owned, swap, write, write_bundle
from planish.compiled import Compiled
from planish_passes.errors import PlanishError

Make = Callable[..., Compiled]
_TRACED = {str(Path(swap.__file__).with_name(n)) for n in ("swap.py", "write.py", "files.py")} | {shutil.__file__}


def marker(at: Path) -> str | None:
    """Which compile an intact bundle is of; None when nothing is there."""
    if not at.exists():
        return None
    opened = open_bundle(at)
    assert opened.check_hashes() == []
    return opened.manifest.notes[-1]


def neighbours(at: Path) -> list[str]:
    """What stands beside the bundle."""
    return sorted(p.name for p in at.parent.iterdir() if p != at)


def killed_at(line: int, compiled: Compiled, at: Path, record: Path | None = None) -> int:
    """Write in a process of its own that kills itself (SIGKILL) before it runs its `line`-th line; its wait status.

    With line 0 nothing is killed, and the file of every line that ran is written to `record`.
    """
    child = os.fork()
    if child == 0:
        ran: list[str] = []

        def trace(frame: FrameType, event: str, arg: Any) -> Any:
            if frame.f_code.co_filename not in _TRACED:
                return None
            if event == "line":
                ran.append(Path(frame.f_code.co_filename).name)
                if len(ran) == line:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        try:
            write_bundle(compiled, at)
            sys.settrace(None)
            if record is not None:
                record.write_text("\n".join(ran))
        except BaseException:  # the parent sees it in the status; never back into pytest
            os._exit(3)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def moments(compiled: Compiled, at: Path, record: Path) -> list[int]:
    """Lines to be killed at: all where names change hands, and samples of all others."""
    assert killed_at(0, compiled, at, record) == 0
    ran = record.read_text().split()
    assert {f"{name}.py" for name in ("swap", "write", "files")} <= set(ran)
    return [number for number, name in enumerate(ran, 1) if name == "swap.py" or number % 60 == 0]


def without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system that cannot exchange two names."""
    monkeypatch.setattr(swap, "_exchange", lambda one, other: False)


@pytest.fixture
def no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that the system already has; waiting for the disk only costs time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(params=["exchange", "rename"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of replacing."""
    if request.param == "rename":
        without_exchange(monkeypatch)
    return str(request.param)


@pytest.mark.usefixtures("no_flush")
def test_killed_anywhere(make: Make, tmp_path: Path, system: str) -> None:
    at = tmp_path / "here" / "m.planish"
    old, new = make("old"), make("new")
    assert [f.sha256 for c in (old, new) for f in c.source.files]  # hash once, not in every child
    write_bundle(old, at)
    seen = []
    for line in moments(new, at, tmp_path / "lines"):
        write_bundle(old, at)
        assert neighbours(at) == []
        assert killed_at(line, new, at) == signal.SIGKILL, line
        if system == "exchange":
            assert at.exists(), line
        swap.recover(at)
        seen.append(marker(at))
    assert set(seen) == {"old", "new"}
    assert len(seen) > 50
    write_bundle(new, at)
    assert neighbours(at) == []


@pytest.mark.usefixtures("no_flush")
def test_killed_during_the_first_write(make: Make, tmp_path: Path) -> None:
    at = tmp_path / "here" / "m.planish"
    compiled = make("new")
    seen = set()
    for line in moments(compiled, at, tmp_path / "lines")[::2]:
        shutil.rmtree(at.parent)
        assert killed_at(line, compiled, at) == signal.SIGKILL
        seen.add(marker(at))
        at.parent.mkdir(exist_ok=True)
    assert seen == {None, "new"}
    write_bundle(compiled, at)
    assert neighbours(at) == []


def test_killed_from_outside_while_another_writes(make: Make, bundle: Path) -> None:
    ready, say = os.pipe()
    child = os.fork()
    if child == 0:
        with swap.replacing(bundle, write.check_replaceable) as new:
            (new / "half").write_text("x")
            os.write(say, b"!")
            signal.pause()
        os._exit(3)
    try:
        assert os.read(ready, 1) == b"!"
        (half,) = neighbours(bundle)
        write_bundle(make("meanwhile"), bundle)
        assert neighbours(bundle) == [half]  # its owner lives: not for others to remove
    finally:
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        os.close(ready)
        os.close(say)
    assert marker(bundle) == "meanwhile"
    write_bundle(make("after"), bundle)
    assert (marker(bundle), neighbours(bundle)) == ("after", [])


def test_stopped_between_two_renames_is_mended_on_open(bundle: Path) -> None:
    os.rename(bundle, bundle.with_name(f".{bundle.name}.old-0123"))
    assert open_bundle(bundle).check_hashes() == []
    assert neighbours(bundle) == []


def test_last_copy_is_never_cleaned_away(bundle: Path) -> None:
    """Another writer moved the old folder aside after this one had looked."""
    aside = bundle.with_name(f".{bundle.name}.old-0123")
    os.rename(bundle, aside)
    swap._clean(bundle)
    assert aside.exists()
    swap.recover(bundle)
    swap._clean(bundle)
    assert marker(bundle) == "one"


def test_old_folder_that_cannot_be_moved_back(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aside = bundle.with_name(f".{bundle.name}.old-0123")
    os.rename(bundle, aside)

    def refuse(one: Path, other: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(one))

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(PlanishError, match="left the bundle under another name") as caught:
        open_bundle(bundle)
    assert (caught.value.where, caught.value.hint) == (str(aside), f"rename it to {bundle.name}")


def test_name_taken_between_the_renames(bundle: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader moves the old folder back just when the writer is about to take its place."""
    without_exchange(monkeypatch)
    rename, calls = os.rename, []

    def racing(one: Path, other: Path) -> None:
        calls.append(other)
        if len(calls) == 2:
            swap.recover(bundle)
        rename(one, other)

    monkeypatch.setattr(os, "rename", racing)
    write_bundle(make("new"), bundle)
    assert (marker(bundle), neighbours(bundle)) == ("new", [])
    assert len(calls) > 3


def test_rename_refused_puts_the_old_bundle_back(bundle: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    without_exchange(monkeypatch)
    rename, before = os.rename, marker(bundle)

    def refuse(one: Path, other: Path) -> None:
        if other == bundle and ".new-" in str(one):
            raise PermissionError(errno.EACCES, "Permission denied", str(one))
        rename(one, other)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(PlanishError, match="may not be written here"):
        write_bundle(make("new"), bundle)
    assert (marker(bundle), neighbours(bundle)) == (before, [])


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is a call of Linux")
def test_exchange_swaps_in_one_step(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    (one / "first").touch()
    if not swap._exchange(one, other):
        pytest.skip("this file system cannot exchange names")
    assert (other / "first").exists()
    assert not (one / "first").exists()
    assert not swap._exchange(one, tmp_path / "none")


def test_everything_is_durable_before_the_swap(make: Make, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: set[int] = set()
    fsync, install = os.fsync, swap._install
    seen: list[tuple[set[int], list[Path]]] = []

    def record(handle: int) -> None:
        flushed.add(os.fstat(handle).st_ino)
        fsync(handle)

    def check(new: Path, at: Path, refuse: Callable[[Path], None]) -> list[Path]:
        seen.append((set(flushed), [new, *new.rglob("*")]))
        missing = [p for p in seen[0][1] if p.stat().st_ino not in flushed]
        assert missing == []
        return install(new, at, refuse)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(swap, "_install", check)
    write_bundle(make("new"), bundle)
    assert len(seen[0][1]) > 17
    assert bundle.parent.stat().st_ino in flushed


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "The disk is full"),
        (errno.EDQUOT, "The disk is full"),
        (errno.EACCES, "may not be written here"),
        (errno.EROFS, "may not be written here"),
        (errno.EIO, "cannot be written: Input/output error"),
    ],
)
@pytest.mark.parametrize("call", ["write_bytes", "fsync", "copyfile", "mkdir"])
def test_failing_disk(
    make: Make, bundle: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, message: str
) -> None:
    before = marker(bundle)

    def fail(*args: object, **named: object) -> None:
        raise OSError(number, os.strerror(number), "somewhere")

    compiled = make("new")
    monkeypatch.setattr({"fsync": os, "copyfile": shutil}.get(call, Path), call, fail)
    with pytest.raises(PlanishError, match=message) as caught:
        write_bundle(compiled, bundle)
    monkeypatch.undo()
    assert caught.value.where == "somewhere"
    assert caught.value.hint
    assert (marker(bundle), neighbours(bundle)) == (before, [])


def test_space_is_checked_first(make: Make, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1_000_000))
    before = marker(bundle)
    with pytest.raises(PlanishError, match="not enough space: 4 MB are needed, 1 MB are free"):
        write_bundle(make("new"), bundle)
    assert (marker(bundle), neighbours(bundle)) == (before, [])


def test_really_full_disk(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        compiled = make("x" * 1000)
        with pytest.raises(PlanishError, match="not enough space"):
            write_bundle(compiled, disk / "m.planish")
        monkeypatch.setattr(write, "_check_space", lambda compiled, at: None)
        with pytest.raises(PlanishError, match="The disk is full"):
            write_bundle(compiled, disk / "m.planish")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_interrupt_leaves_nothing(make: Make, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(swap, "settle", interrupt)
    before = marker(bundle)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(make("new"), bundle)
    assert (marker(bundle), neighbours(bundle)) == (before, [])


@pytest.mark.parametrize("content", [None, "{}", '{"format": "other"}', '{"x": "planish-bundle"}'])
def test_other_folders_are_not_overwritten(make: Make, tmp_path: Path, content: str | None) -> None:
    at = tmp_path / "work"
    at.mkdir()
    (at / "thesis.txt").write_text("years of work")
    if content is not None:
        (at / "manifest.json").write_text(content)
    with pytest.raises(PlanishError, match="not a planish bundle"):
        write_bundle(make(), at)
    assert (at / "thesis.txt").read_text() == "years of work"
    assert neighbours(at) == []


def test_folder_that_appears_meanwhile_is_not_overwritten(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, settle = tmp_path / "m.planish", swap.settle

    def slow(folder: Path) -> None:
        settle(folder)
        at.mkdir()
        (at / "thesis.txt").write_text("years of work")

    monkeypatch.setattr(swap, "settle", slow)
    with pytest.raises(PlanishError, match="not a planish bundle"):
        write_bundle(make(), at)
    assert (at / "thesis.txt").exists()
    assert neighbours(at) == []


def test_files_and_links_are_not_overwritten(make: Make, bundle: Path, tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("x")
    link.symlink_to(bundle)
    for at, kind in ((file, "a file"), (link, "a symbolic link")):
        with pytest.raises(PlanishError, match=f"already {kind}"):
            write_bundle(make(), at)
    assert file.read_text() == "x"
    assert link.is_symlink()


def test_empty_folders_and_damaged_bundles_may_be_replaced(make: Make, bundle: Path, tmp_path: Path) -> None:
    manifest = bundle / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:200])
    assert marker(write_bundle(make("new"), bundle)) == "new"
    (tmp_path / "empty").mkdir()
    assert marker(write_bundle(make("new"), tmp_path / "empty")) == "new"
    assert marker(write_bundle(make("new"), tmp_path / "a" / "b" / "m.planish")) == "new"


def test_artifact_on_another_disk_is_copied(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    linked = write_bundle(make(), tmp_path / "linked.planish") / "targets/onnxruntime/model.onnx"
    monkeypatch.setattr(os, "link", refuse)
    copied = write_bundle(make(), tmp_path / "copied.planish") / "targets/onnxruntime/model.onnx"
    assert (linked.stat().st_nlink, copied.stat().st_nlink) == (2, 1)
    assert marker(tmp_path / "copied.planish") == "one"


def test_file_system_without_locks(make: Make, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then only what is older than a day counts as abandoned."""

    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    fresh, stale = (bundle.with_name(f".{bundle.name}.new-{n}") for n in ("fresh", "stale"))
    fresh.mkdir()
    stale.mkdir()
    os.utime(stale, (0, 0))
    monkeypatch.setattr(owned.fcntl, "flock", refuse)
    write_bundle(make("new"), bundle)
    assert (marker(bundle), neighbours(bundle)) == ("new", [fresh.name])
