"""The cache: what comes out is what went in, or it is told; killed at any moment nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matrices import FILES, bundle, contents, entry

from planish.matrix import store as module
from planish.matrix.key import key_of
from planish.matrix.store import DamagedError, Entry, Store
from planish_passes.errors import PlanishError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture
def kept(store: Store, tmp_path: Path) -> Entry:
    """A bundle that is in the cache."""
    at = bundle(tmp_path / "one.planish")
    made = entry(at)
    store.store(made, at)
    return made


def test_what_goes_in_comes_out(store: Store, kept: Entry, tmp_path: Path) -> None:
    assert store.entry(kept.key) == kept
    assert store.entry("0" * 64) is None
    store.restore(kept, tmp_path / "deep" / "out.planish")
    assert contents(tmp_path / "deep" / "out.planish") == contents(tmp_path / "one.planish")
    store.restore(kept, bundle(tmp_path / "old.planish", b"old"))
    assert contents(tmp_path / "old.planish") == contents(tmp_path / "one.planish")
    assert os.listdir(tmp_path / "deep") == ["out.planish"]


def test_files_are_shared(store: Store, kept: Entry, tmp_path: Path) -> None:
    at = bundle(tmp_path / "two.planish", b"two")
    store.store(entry(at, "two"), at)
    assert store.usage()[0] == 2
    assert len([p for p in (store.root / "objects").rglob("*") if p.is_file()]) == 5  # of six files two are the same


def test_nothing_but_a_bundle_is_replaced(store: Store, kept: Entry, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(PlanishError, match="not a planish bundle"):
        store.restore(kept, tmp_path / "mine")
    assert contents(tmp_path / "mine") == {"thesis.txt": b"x"}


@pytest.mark.parametrize("how", ["changed", "gone", "shorter"])
def test_a_damaged_object_is_named_and_removed(store: Store, kept: Entry, tmp_path: Path, how: str) -> None:
    broken = store.object(kept.files["targets/a/model.onnx"].sha256)
    if how == "gone":
        broken.unlink()
    else:
        broken.write_bytes(broken.read_bytes()[: -1 if how == "shorter" else None].replace(b"m", b"n"))
    before = contents(bundle(tmp_path / "old.planish", b"old"))
    with pytest.raises(DamagedError) as caught:
        store.restore(kept, tmp_path / "old.planish")
    assert broken.name in caught.value.what
    assert contents(tmp_path / "old.planish") == before
    assert store.entry(kept.key) is None
    assert not broken.exists()
    store.store(kept, tmp_path / "one.planish")  # and the next build puts it back
    store.restore(kept, tmp_path / "old.planish")
    assert contents(tmp_path / "old.planish") == contents(tmp_path / "one.planish")


def _swapped(data: dict[str, Any]) -> dict[str, Any]:
    """An entry of other inputs with a seal that fits: the name of the file is the key."""
    body = {**data, "inputs": {"name": "another"}}
    del body["sha256"]
    return {**body, "sha256": key_of(body)}


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d["files"].pop("same") and d,
        lambda d: {**d, "summary": {"ok": False}},
        lambda d: {**d, "sha256": "0" * 64},
        lambda d: {**d, "version": 2},
        lambda d: [],
        lambda d: {},
        _swapped,
    ],
)
def test_a_damaged_entry_is_named_and_removed(store: Store, kept: Entry, damage: Any) -> None:
    path = store.root / "entries" / f"{kept.key}.json"
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(DamagedError, match=kept.key):
        store.entry(kept.key)
    assert store.entry(kept.key) is None


def test_a_torn_entry(store: Store, kept: Entry) -> None:
    path = store.root / "entries" / f"{kept.key}.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DamagedError):
        store.entry(kept.key)


def test_a_bundle_that_changes_on_its_way_in_is_not_kept(store: Store, tmp_path: Path) -> None:
    at = bundle(tmp_path / "one.planish")
    made = entry(at)
    (at / "same").write_bytes(b"more")
    with pytest.raises(DamagedError):
        store.store(made, at)
    assert store.entry(made.key) is None


def test_everything_can_be_read_again(store: Store, kept: Entry) -> None:
    assert list(store.damage()) == []
    broken = store.object(kept.files["same"].sha256)
    broken.write_bytes(b"emas")
    told = list(store.damage())
    assert told[0] == str(broken)
    assert told[1].endswith(f"{kept.key}.json")  # an entry without one of its files
    assert store.usage()[0] == 0


def test_the_longest_unused_go_first(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = []
    for number in range(3):
        at = bundle(tmp_path / f"{number}.planish", str(number).encode())
        entries.append(entry(at, str(number)))
        store.store(entries[-1], at)
        os.utime(store.root / "entries" / f"{entries[-1].key}.json", (number, number))
    store.restore(entries[0], tmp_path / "out.planish")  # used: now the youngest
    whole = store.usage()[1]
    assert store.prune(whole) == (whole, whole)
    before, after = store.prune(whole - 1)
    assert (before, after) == (whole, whole - len(FILES["manifest.json"]) - len(FILES["targets/a/model.onnx"]) - 2)
    assert [store.entry(e.key) is None for e in entries] == [False, True, False]
    store.restore(entries[2], tmp_path / "out.planish")
    assert store.prune(0)[1] == 0
    assert store.usage() == (0, 0)


def test_pruning_leaves_what_another_build_is_about_to_name(store: Store, kept: Entry, tmp_path: Path) -> None:
    (store.root / "entries" / f"{kept.key}.json").unlink()
    assert store.prune(0)[1] > 0
    half = next(p for p in (store.root / "objects").rglob("*") if p.is_file())
    half.rename(half.with_name(f".{half.name}.0"))  # of a process that was killed
    store.prune(0)
    assert half.with_name(f".{half.name}.0").exists()
    for path in (store.root / "objects").rglob("*"):
        os.utime(path, (1, 1))
    assert store.prune(0)[1] == 0
    assert not [p for p in (store.root / "objects").rglob("*") if p.is_file()]


KILL = """
import os, signal, sys
from pathlib import Path
calls = ("rename", "replace", "fsync", "mkdir", "unlink", "open", "link", "utime")
left = int(sys.argv[1])
def counted(real):
    def call(*arguments, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    return call
from planish.matrix.store import Entry, Store, fingerprints
at, cache, out = map(Path, sys.argv[2:5])
made = Entry({"name": "one"}, fingerprints(at), {"ok": True})
for name in calls:
    setattr(os, name, counted(getattr(os, name)))
store = Store(cache)
if sys.argv[5] == "store":
    store.store(made, at)
else:
    store.restore(made, out)
print("through")
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.parametrize("what", ["store", "restore"])
def test_killed_at_any_call_of_the_system(tmp_path: Path, what: str) -> None:
    at = bundle(tmp_path / "one.planish")
    made, moment = entry(at), 0
    while True:
        moment += 1
        cache, out = Store(tmp_path / f"cache{moment}"), tmp_path / f"o{moment}" / "out.planish"
        old = contents(bundle(out, b"old"))
        if what == "restore":
            cache.store(made, at)
        command = [sys.executable, "-c", KILL, str(moment), str(at), str(cache.root), str(out), what]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        # No half bundle, no lost one; no half entry; and afterwards everything works.
        assert contents(out) in ((old,) if what == "store" else (old, contents(at)))
        assert list(cache.damage()) == []
        found = cache.entry(made.key)
        assert found in ((None, made) if what == "store" else (made,))
        if found is None:
            cache.store(made, at)
        cache.restore(made, out)
        assert contents(out) == contents(at)
        assert os.listdir(out.parent) == ["out.planish"]
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert moment > 10


@pytest.mark.parametrize("what", ["store", "restore"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    at = bundle(tmp_path / "one.planish")
    made, cache, out = entry(at), Store(tmp_path / "cache"), bundle(tmp_path / "out.planish", b"old")
    if what == "restore":
        cache.store(made, at)
    real = os.fsync

    def full(handle: int) -> None:
        full.left -= 1  # type: ignore[attr-defined]
        if full.left < 0:  # type: ignore[attr-defined]
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(module.os, "fsync", full)
    before = contents(out)
    for room in range(3):
        full.left = room  # type: ignore[attr-defined]
        with pytest.raises(OSError, match="No space left"):
            cache.store(made, at) if what == "store" else cache.restore(made, out)
        assert contents(out) == before
        assert not [name for name in os.listdir(tmp_path) if name.startswith(".out")]
    full.left = 1000  # type: ignore[attr-defined]
    if what == "store":
        assert cache.entry(made.key) is None
        cache.store(made, at)
    assert list(cache.damage()) == []
    cache.restore(made, out)
    assert contents(out) == contents(at)
