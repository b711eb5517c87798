"""Files of a bundle: walk, hash, and make durable."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from planish_passes.errors import PlanishError

if TYPE_CHECKING:
    from planish.bundle.manifest import FileEntry

MANIFEST = "manifest.json"


def walk(root: Path) -> Iterator[tuple[str, Path]]:
    """Every file below a folder as (path with forward slashes, path), sorted.

    Raises:
        PlanishError: a symbolic link, device, pipe or socket.
        OSError: a folder that cannot be read.
    """
    for entry in sorted(os.scandir(root), key=lambda e: e.name):
        path = root / entry.name
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            yield from ((f"{entry.name}/{name}", inner) for name, inner in walk(path))
        elif stat.S_ISREG(mode):
            yield entry.name, path
        else:
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "not a regular file"
            raise PlanishError(f"{entry.name} is {kind}.", str(path), "a bundle holds folders and regular files only")


def empty_folders(root: Path) -> list[str]:
    """Folders below `root` that hold nothing, with forward slashes, sorted."""
    empty = [Path(at) for at, folders, files in os.walk(root) if not folders and not files]
    return sorted(at.relative_to(root).as_posix() for at in empty if at != root)


def fingerprint(path: Path) -> FileEntry:
    """Size and hash of a file, read in pieces."""
    from planish.bundle.manifest import FileEntry

    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(bytes=os.fstat(file.fileno()).st_size, sha256=digest)


def digest_of_file(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def settle(root: Path) -> None:
    """Make every file and folder below `root`, and `root` itself, durable; and readable as the umask says."""
    mask = os.umask(0o077)
    os.umask(mask)
    for _, path in walk(root):
        # Some writers make private files on purpose (safetensors: 0600); a bundle is for others to read.
        if sys.platform != "win32" and stat.S_IMODE(path.stat().st_mode) != 0o666 & ~mask:
            path.chmod(0o666 & ~mask)
        settle_file(path)
    for folder, _, _ in os.walk(root, topdown=False):
        settle_folder(Path(folder))


def settle_file(path: Path) -> None:
    """Wait until the file's data is on the disk."""
    with path.open("r+b" if sys.platform == "win32" else "rb") as file:  # Windows flushes writable handles only
        os.fsync(file.fileno())


def settle_folder(path: Path) -> None:
    """Wait until the folder's list of names is on the disk."""
    if sys.platform == "win32":  # has no such call
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that, killed at any moment, either the old one stands or the new one.

    Raises:
        OSError: the file system refused; nothing is left behind.
    """
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with new.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    settle_folder(path.parent)
