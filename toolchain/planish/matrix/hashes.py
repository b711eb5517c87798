"""Hashes of the files of a model, which are read again only when the file system says that they changed."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from planish.bundle.files import write_whole
from planish.locate import Located

_SETTLED = 2.0  # seconds: file systems count time in steps, and two changes within one step look like one
# Weights that planish never opens, other forms of the same model, and what it writes itself. All else may be read.
_IGNORED = (
    ".*",
    "__pycache__",
    "*.planish",
    "checkpoint-*",
    "pytorch_model*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.pkl",
    "*.h5",
    "*.msgpack",
    "*.ot",
    "*.onnx",
    "*.onnx_data",
    "*.tflite",
)


class Hashes:
    """sha256 by path, kept in a file between runs.

    A kept hash counts as long as size, modification time, change time and inode of the file are the same. The change
    time cannot be set by programs, so a file that was put back with an older date is seen as well.
    """

    def __init__(self, kept: Path) -> None:
        self._file = kept
        self._changed = False
        try:
            read = json.loads(kept.read_bytes())
            self._known: dict[str, object] = read if isinstance(read, dict) else {}
        except (OSError, ValueError):  # never written, or damaged: every file is read again
            self._known = {}

    def of(self, path: Path) -> str:
        """The hash of a file.

        Raises:
            OSError: it cannot be read.
        """
        real = os.path.realpath(path)
        with open(real, "rb") as file:
            found = os.fstat(file.fileno())
            stamp: list[object] = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
            known = self._known.get(real)
            if isinstance(known, list) and known[:-1] == stamp and isinstance(known[-1], str):
                return known[-1]
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if time.time() - max(found.st_mtime, found.st_ctime) > _SETTLED:
            self._known[real] = [*stamp, digest]
            self._changed = True
        return digest

    def keep(self) -> None:
        """Write what was learnt.

        Raises:
            OSError: it cannot be written.
        """
        if self._changed:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            there = {path: known for path, known in self._known.items() if os.path.exists(path)}
            write_whole(self._file, json.dumps(there).encode())
            self._changed = False


def model_files(found: Located) -> dict[str, Path]:
    """Every file that a compile of the model may read: name in its folder -> path. Too many rather than too few."""
    if found.file is not None:  # a GGUF file has its config and tokenizer inside
        return {found.file.name: found.file}
    return {path.relative_to(found.root).as_posix(): path for path in sorted(_walk(found.root))}


def _walk(folder: Path) -> Iterator[Path]:
    for entry in os.scandir(folder):
        if any(fnmatch(entry.name, pattern) for pattern in _IGNORED):
            continue
        if entry.is_dir():
            yield from _walk(folder / entry.name)
        elif entry.is_file():
            yield folder / entry.name
