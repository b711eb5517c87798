"""The caches of a build: one on this machine, and behind it one that machines may share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from planish.matrix.remote import Remote
from planish.matrix.store import DamagedError, Entry, Store

VARIABLE = "PLANISH_CACHE"  # environment variable: a folder or URL, where neither flag nor file names one
Note = Callable[[str], None]
T = TypeVar("T")


def local_folder() -> Path:
    """The folder of the local cache: that of the user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "planish", "build")


class Cache:
    """Looks on this machine first; what fails costs a build and is told, never an error.

    Args:
        where: a folder (instead of the user's own), a URL (behind the user's own), or None.
        note: told what is damaged or cannot be reached.
    """

    def __init__(self, where: str | None, note: Note) -> None:
        told = where or os.environ.get(VARIABLE)
        shared = told is not None and "://" in told
        self.local = Store(local_folder() if told is None or shared else Path(told).expanduser().absolute())
        self._remote = Remote(told) if told is not None and shared else None
        self._note = note

    def find(self, key: str) -> Entry | None:
        """The entry of a key, wherever it is."""
        entry = self._try(lambda: self.local.entry(key))
        remote = self._remote
        return entry if entry is not None or remote is None else self._try(lambda: remote.entry(key))

    def restore(self, entry: Entry, at: Path) -> bool:
        """Put a bundle in its place; False when the cache could not.

        Raises:
            PlanishError: something else than a bundle stands there.
            OSError: the bundle cannot be written.
        """
        if self._remote is not None and self.local_lacks(entry) and not self._fetch(entry):
            return False
        try:
            self.local.restore(entry, at)
        except DamagedError as error:
            self._note(f"{error.what} ({error.where})")
            return self._remote is not None and self._fetch(entry) and self._again(entry, at)
        return True

    def store(self, entry: Entry, bundle: Path) -> None:
        """Keep a bundle in both; a full disk or a place that cannot be reached is a note."""
        self._try(lambda: self.local.store(entry, bundle))
        remote = self._remote
        if remote is not None and not self.local_lacks(entry):
            self._try(lambda: remote.store(entry, self.local))

    def local_lacks(self, entry: Entry) -> bool:
        """True when an object of the entry is not on this machine."""
        return any(not self.local.object(file.sha256).is_file() for file in entry.files.values())

    def _fetch(self, entry: Entry) -> bool:
        remote = self._remote
        assert remote is not None

        def fetched() -> bool:
            remote.fetch(entry, self.local)
            return True

        return self._try(fetched) is True

    def _again(self, entry: Entry, at: Path) -> bool:
        try:
            self.local.restore(entry, at)
        except DamagedError as error:
            self._note(f"{error.what} ({error.where})")
            return False
        return True

    def _try(self, ask: Callable[[], T]) -> T | None:
        try:
            return ask()
        except DamagedError as error:
            self._note(f"{error.what} ({error.where})")
        except OSError as error:
            self._note(f"The cache cannot be used: {error.strerror or error} ({error.filename or self.local.root})")
        return None
