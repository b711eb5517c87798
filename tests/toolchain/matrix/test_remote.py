"""A shared cache behind the local one, through fsspec: what one machine builds, another takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from matrices import bundle, contents, entry

from planish.matrix.cache import VARIABLE, Cache, local_folder
from planish.matrix.remote import Remote
from planish_passes.errors import PlanishError


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A place that machines share."""
    if request.param == "file":
        yield f"file://{tmp_path / 'shared'}"
        return
    files = fsspec.filesystem("memory")
    yield "memory://shared"
    files.rm("/shared", recursive=True) if files.exists("/shared") else None


class Machine:
    """A user's own cache on one machine, and what it told."""

    def __init__(self, home: Path, url: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(home))
        self.notes: list[str] = []
        self.cache = Cache(url, self.notes.append)


def test_what_one_machine_builds_another_takes(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = bundle(tmp_path / "one.planish")
    made = entry(at)
    first = Machine(tmp_path / "home1", url, monkeypatch)
    assert first.cache.find(made.key) is None
    first.cache.store(made, at)
    second = Machine(tmp_path / "home2", url, monkeypatch)
    found = second.cache.find(made.key)
    assert found == made
    assert second.cache.restore(found, tmp_path / "out.planish")
    assert contents(tmp_path / "out.planish") == contents(at)
    alone = Machine(tmp_path / "home2", None, monkeypatch)  # and keeps it
    assert alone.cache.find(made.key) == made
    assert alone.cache.restore(made, tmp_path / "out.planish")
    assert first.notes == second.notes == alone.notes == []


@pytest.mark.parametrize("how", ["changed", "gone", "torn entry"])
def test_damage_costs_a_build_and_is_told(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    at = bundle(tmp_path / "one.planish")
    made = entry(at)
    Machine(tmp_path / "home1", url, monkeypatch).cache.store(made, at)
    files, root = fsspec.core.url_to_fs(url)
    digest = made.files["targets/a/model.onnx"].sha256
    path = f"{root}/objects/{digest[:2]}/{digest}"
    if how == "gone":
        files.rm_file(path)
    elif how == "changed":
        files.pipe_file(path, files.cat_file(path).replace(b"m", b"n"))
    else:
        path = f"{root}/entries/{made.key}.json"
        files.pipe_file(path, files.cat_file(path)[:-9])
    second = Machine(tmp_path / "home2", url, monkeypatch)
    found = second.cache.find(made.key)
    old = contents(bundle(tmp_path / "out.planish", b"old"))
    assert found is None if how == "torn entry" else not second.cache.restore(made, tmp_path / "out.planish")
    assert contents(tmp_path / "out.planish") == old
    assert len(second.notes) == 1
    assert (made.key if how == "torn entry" else digest) in second.notes[0]
    # The build that follows mends it, for all.
    second.cache.store(made, at)
    third = Machine(tmp_path / "home3", url, monkeypatch)
    assert third.cache.find(made.key) == made
    assert third.cache.restore(made, tmp_path / "out.planish")


def test_damage_on_this_machine_is_mended_from_the_other(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = bundle(tmp_path / "one.planish")
    made = entry(at)
    machine = Machine(tmp_path / "home", url, monkeypatch)
    machine.cache.store(made, at)
    machine.cache.local.object(made.files["same"].sha256).write_bytes(b"emas")
    assert machine.cache.restore(made, tmp_path / "out.planish")
    assert contents(tmp_path / "out.planish") == contents(at)
    assert made.files["same"].sha256 in machine.notes[0]


def test_an_upload_that_was_cut_off_is_finished(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = bundle(tmp_path / "one.planish")
    made = entry(at)
    files, root = fsspec.core.url_to_fs(url)
    digest = made.files["targets/a/model.onnx"].sha256
    files.makedirs(f"{root}/objects/{digest[:2]}", exist_ok=True)
    files.pipe_file(f"{root}/objects/{digest[:2]}/{digest}", b"mod")
    Machine(tmp_path / "home1", url, monkeypatch).cache.store(made, at)
    second = Machine(tmp_path / "home2", url, monkeypatch)
    assert second.cache.restore(made, tmp_path / "out.planish")
    assert second.notes == []


def test_a_place_that_cannot_be_reached_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = bundle(tmp_path / "one.planish")
    made = entry(at)
    machine = Machine(tmp_path / "home", f"file://{tmp_path / 'a file' / 'shared'}", monkeypatch)
    (tmp_path / "a file").write_text("in the way")
    machine.cache.store(made, at)
    assert "cannot be used" in machine.notes[0]
    assert machine.cache.find(made.key) == made  # on this machine


def test_errors_of_vendors_are_notes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no credentials")

    machine = Machine(tmp_path / "home", "memory://shared", monkeypatch)
    monkeypatch.setattr(fsspec.filesystem("memory"), "exists", refuse)
    assert machine.cache.find("0" * 64) is None
    assert "no credentials" in machine.notes[0]


def test_an_unknown_kind_of_place() -> None:
    with pytest.raises(PlanishError, match="cannot be opened"):
        Remote("nowhere://x")


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Cache(None, print).local.root == local_folder() == tmp_path / "planish" / "build"
    assert Cache("memory://x", print).local.root == local_folder()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "env"))
    assert Cache(None, print).local.root == tmp_path / "env"
    assert Cache(str(tmp_path / "flag"), print).local.root == tmp_path / "flag"
