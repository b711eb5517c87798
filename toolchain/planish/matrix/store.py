"""The cache: bundles by the key of their inputs, files by their own hash.

    entries/<key>.json       what the bundle was made from, its files, what the compile said; sealed with a hash
    objects/<ab>/<sha256>    contents of files; bundles that hold the same file share it

An entry is written after all of its objects, each in one step: killed at any moment, an entry is whole or not there.
Every byte that comes out is hashed on its way; what does not fit is removed and told by name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from planish.bundle.files import digest_of_file, settle_file, settle_folder, walk, write_whole
from planish.bundle.swap import check_replaceable, replacing
from planish.matrix.key import key_of
from planish_passes.errors import PlanishError

_FORMAT = "planish-build-cache"
_PIECE = 1 << 20  # bytes
_FRESH = 3600.0  # seconds that an object without an entry is left alone: its entry may be about to come
_OBJECTS, _ENTRIES = "objects", "entries"


@dataclass(frozen=True)
class Stored:
    """One file of a cached bundle."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Entry:
    """One cached bundle.

    Args:
        inputs: what it was made from (`planish.matrix.key`).
        files: path inside the bundle -> hash and size.
        summary: what `planish compile --json` said of it.
    """

    inputs: Mapping[str, Any]
    files: Mapping[str, Stored]
    summary: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Under which it is found."""
        return key_of(self.inputs)

    def dump(self) -> bytes:
        """As JSON, sealed."""
        body = {"format": _FORMAT, "version": 1, **asdict(self)}
        return json.dumps({**body, "sha256": key_of(body)}, indent=1).encode()

    @staticmethod
    def parse(data: bytes, key: str) -> Entry:
        """Read again.

        Raises:
            ValueError: it is damaged, or not the entry of this key.
        """
        body = json.loads(data)
        seal = body.pop("sha256")
        if body.get("format") != _FORMAT or body.get("version") != 1:
            raise ValueError("is not an entry of a planish cache")
        if seal != key_of(body):
            raise ValueError("does not have the hash that it states")
        entry = Entry(body["inputs"], {p: Stored(**f) for p, f in body["files"].items()}, body["summary"])
        if entry.key != key:
            raise ValueError("was made from other inputs than its name says")
        return entry


class DamagedError(PlanishError):
    """Something in the cache is not what it was; it has been removed."""


class Store:
    """A cache in a folder.

    Args:
        root: the folder; made when something is stored.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def entry(self, key: str) -> Entry | None:
        """The entry of a key; None when there is none.

        Raises:
            DamagedError: there was one.
            OSError: it cannot be read.
        """
        path = self._entry(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return Entry.parse(data, key)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            path.unlink(missing_ok=True)
            raise _damaged(path, str(error)) from error

    def restore(self, entry: Entry, at: Path) -> None:
        """Put the bundle `at`, or in the place of the bundle that is there; all of it, or nothing.

        Raises:
            DamagedError: an object is missing or has changed; it and the entry have been removed.
            PlanishError: `at` is something else than a bundle.
            OSError: the file system refused.
        """
        at = at.absolute()
        if os.path.lexists(at):
            check_replaceable(at)
        at.parent.mkdir(parents=True, exist_ok=True)
        with replacing(at, check_replaceable) as folder:
            for inside, file in entry.files.items():
                self._take(entry, file, folder / inside)
        with contextlib.suppress(OSError):  # a cache that may only be read has no order of use
            os.utime(self._entry(entry.key))

    def store(self, entry: Entry, bundle: Path) -> None:
        """Keep a bundle.

        Raises:
            OSError: the file system refused; nothing that counts is left behind.
            DamagedError: the bundle is not what the entry says.
        """
        for inside, file in entry.files.items():
            self.receive(file, partial(shutil.copyfile, bundle / inside))
        self.write(entry)

    def write(self, entry: Entry) -> None:
        """Write an entry whose objects are all there.

        Raises:
            OSError: the file system refused.
        """
        self._entry(entry.key).parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._entry(entry.key), entry.dump())

    def receive(self, file: Stored, write: Callable[[Path], object]) -> None:
        """Keep one file, unless it is there.

        Args:
            file: what it must be.
            write: called with a path to write it to.

        Raises:
            DamagedError: it is something else; nothing is kept.
            OSError: the file system refused; nothing is left behind.
        """
        to = self.object(file.sha256)
        if to.is_file() and to.stat().st_size == file.bytes:
            os.utime(to)
            return
        to.parent.mkdir(parents=True, exist_ok=True)
        new = to.with_name(f".{to.name}.{secrets.token_hex(4)}")
        try:
            write(new)
            if digest_of_file(new) != file.sha256:
                raise _damaged(to, "is not what it should be")
            settle_file(new)
            os.replace(new, to)
        finally:
            new.unlink(missing_ok=True)
        settle_folder(to.parent)

    def forget(self, entry: Entry, file: Stored | None = None) -> None:
        """Remove an entry, and one of its objects."""
        self._entry(entry.key).unlink(missing_ok=True)
        if file is not None:
            self.object(file.sha256).unlink(missing_ok=True)

    def object(self, sha256: str) -> Path:
        """Where a file with this hash is, or would be."""
        return self.root / _OBJECTS / sha256[:2] / sha256

    def prune(self, limit: int) -> tuple[int, int]:
        """Remove bundles, longest unused first, until objects take at most `limit` bytes.

        Returns:
            Bytes before and after.
        """
        entries = sorted(self._entries(), key=lambda found: found[0].stat().st_mtime)
        sizes = {path.name: path.stat().st_size for path in self._objects()}
        users: dict[str, int] = {}
        for _, entry in entries:
            for digest in {f.sha256 for f in entry.files.values()}:
                users[digest] = users.get(digest, 0) + 1
        before = sum(sizes.values())
        left = sum(size for name, size in sizes.items() if name in users or self._young(self.object(name)))
        for path, entry in entries:
            if left <= limit:
                break
            path.unlink(missing_ok=True)
            for digest in {f.sha256 for f in entry.files.values()}:
                users[digest] -= 1
                left -= 0 if users[digest] else sizes.get(digest, 0)
        for path in self._objects():
            if not users.get(path.name) and (path.name in users or not self._young(path)):
                path.unlink(missing_ok=True)
        for path in self._leftovers():
            path.unlink(missing_ok=True)
        return before, sum(path.stat().st_size for path in self._objects())

    def usage(self) -> tuple[int, int]:
        """Bundles, and bytes of objects."""
        return sum(1 for _ in self._entries()), sum(path.stat().st_size for path in self._objects())

    def damage(self) -> Iterator[str]:
        """Read everything; names what does not have its hash, after it has been removed."""
        for path in self._objects():
            if digest_of_file(path) != path.name:
                path.unlink(missing_ok=True)
                yield str(path)
        for path in sorted((self.root / _ENTRIES).glob("*.json")):
            try:
                entry = self.entry(path.stem)
            except DamagedError:
                yield str(path)
                continue
            if entry and any(not self.object(f.sha256).is_file() for f in entry.files.values()):
                path.unlink(missing_ok=True)
                yield str(path)

    def _entries(self) -> Iterator[tuple[Path, Entry]]:
        for path in sorted((self.root / _ENTRIES).glob("*.json")):
            with contextlib.suppress(DamagedError):
                entry = self.entry(path.stem)
                if entry is not None:
                    yield path, entry

    def _objects(self) -> list[Path]:
        return [path for path in (self.root / _OBJECTS).glob("*/[0-9a-f]*") if path.is_file()]

    def _leftovers(self) -> Iterator[Path]:
        """What processes that were killed have left half written."""
        for folder in (self.root / _OBJECTS, self.root / _ENTRIES):
            yield from (path for path in folder.rglob(".*") if path.is_file() and not self._young(path))

    def _young(self, path: Path) -> bool:
        return time.time() - path.stat().st_mtime < _FRESH

    def _entry(self, key: str) -> Path:
        return self.root / _ENTRIES / f"{key}.json"

    def _take(self, entry: Entry, file: Stored, to: Path) -> None:
        to.parent.mkdir(parents=True, exist_ok=True)
        path = self.object(file.sha256)
        try:
            found = _copy(path, to)
        except FileNotFoundError:
            found = "nothing"
        if found != file.sha256:
            self.forget(entry, file)
            raise _damaged(path, "is missing" if found == "nothing" else "does not have the hash of its name")


def fingerprints(bundle: Path) -> dict[str, Stored]:
    """Hash and size of every file of a bundle.

    Raises:
        OSError: one cannot be read.
    """
    found = {}
    for inside, path in walk(bundle):
        found[inside] = Stored(digest_of_file(path), path.stat().st_size)
    return found


def _copy(path: Path, to: Path) -> str:
    whole = hashlib.sha256()
    with path.open("rb") as source, to.open("xb") as target:
        while piece := source.read(_PIECE):
            whole.update(piece)
            target.write(piece)
    return whole.hexdigest()


def _damaged(path: Path, how: str) -> DamagedError:
    return DamagedError(f"The cache is damaged: {path.name} {how}.", str(path), "it has been removed; build again")
