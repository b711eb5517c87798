"""A cache that machines share: any place that fsspec can write to (s3://, gs://, az://, file://, memory://, ...).

The layout is that of the local cache. Objects come first and the entry last, so that an upload that was cut off shows
nothing. Everything that is read goes through the local cache, which hashes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from planish.matrix.store import DamagedError, Entry, Store, Stored
from planish_passes.errors import PlanishError


class Remote:
    """A shared cache.

    Args:
        url: of a folder or bucket prefix.

    Raises:
        PlanishError: no file system is installed for this kind of URL.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            hint = "pip install the package that it names, or give a folder"
            raise PlanishError(f"The cache cannot be opened: {error}", url, hint) from error

    def entry(self, key: str) -> Entry | None:
        """The entry of a key; None when there is none.

        Raises:
            DamagedError: there was one.
            OSError: the place cannot be reached.
        """
        path = f"{self._root}/entries/{key}.json"
        with _told():
            if not self._files.exists(path):
                return None
            data = self._files.cat_file(path)
        try:
            return Entry.parse(data, key)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._remove(path)
            raise _damaged(f"{self.url}/entries/{key}.json", str(error)) from error

    def fetch(self, entry: Entry, into: Store) -> None:
        """Copy a bundle into a local cache.

        Raises:
            DamagedError: an object is missing or has changed; what is damaged has been removed.
            OSError: the place cannot be reached, or the local one cannot be written.
        """
        for file in entry.files.values():
            try:
                with _told():
                    into.receive(file, partial(self._get, file))
            except (FileNotFoundError, DamagedError) as error:
                self._remove(f"{self._root}/entries/{entry.key}.json")
                self._remove(self._object(file))
                raise _damaged(f"{self.url}/objects/{file.sha256}", "is missing or changed") from error
        into.write(entry)

    def store(self, entry: Entry, local: Store) -> None:
        """Copy a bundle from a local cache.

        Raises:
            OSError: the place cannot be reached or written.
        """
        with _told():
            for file in entry.files.values():
                to = self._object(file)
                if self._size(to) != file.bytes:  # also what an upload that was cut off has left
                    self._files.makedirs(to.rpartition("/")[0], exist_ok=True)
                    self._files.put_file(str(local.object(file.sha256)), to)
            path = f"{self._root}/entries/{entry.key}.json"
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._files.pipe_file(path, entry.dump())

    def _get(self, file: Stored, to: Path) -> None:
        self._files.get_file(self._object(file), str(to))

    def _object(self, file: Stored) -> str:
        return f"{self._root}/objects/{file.sha256[:2]}/{file.sha256}"

    def _size(self, path: str) -> int | None:
        try:
            size: Any = self._files.size(path)
        except FileNotFoundError:
            return None
        return None if size is None else int(size)

    def _remove(self, path: str) -> None:
        with _told(), contextlib.suppress(FileNotFoundError):  # another machine was faster
            self._files.rm_file(path)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    # Every vendor's client has errors of its own; to a build they all mean that the place cannot be used.
    try:
        yield
    except (OSError, PlanishError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _damaged(where: str, how: str) -> DamagedError:
    return DamagedError(f"The shared cache is damaged: {how}.", where, "it has been removed; build again")
