"""Read a packed bundle from anywhere: nothing is written before every name, size and header has been looked at.

Only what `pack_bundle` writes is read. An archive that can be understood in two ways (other names in local headers,
gaps, overlaps, trailing bytes) is refused, because another program may unpack something else from it.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pydantic import TypeAdapter, ValidationError

from planish.bundle.additions import additions
from planish.bundle.codec import LARGEST as LARGEST_MANIFEST
from planish.bundle.codec import parse_manifest
from planish.bundle.manifest import MANIFEST, Manifest
from planish.bundle.part import BundlePath
from planish.bundle.read import open_bundle
from planish.bundle.zip_layout import check_list, directory_of, local_end
from planish_passes.errors import PlanishError

ENTRIES = 20_000  # files of an archive
TOTAL = 64 << 30  # bytes of all files
RATIO, SMALL = 100, 1 << 30  # bytes of all files per byte of the archive; below `SMALL` any ratio is allowed
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that the format has
MODE = 0o100644 << 16  # a regular file that everybody may read
_ADDED = 64 << 20  # bytes of one file that no manifest lists
_DEFLATE = 1032  # the best that deflate can do (https://zlib.net/zlib_tech.html)
_SPARE = 16 << 20
_PIECE = 1 << 20
_HINT = "pack the bundle again: planish pack NAME.planish"
_PATH: TypeAdapter[str] = TypeAdapter(BundlePath)
_BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, ValueError, NotImplementedError, EOFError, OverflowError)


class ArchiveRefused(PlanishError):
    """An archive that is not a bundle as planish packs it."""


def is_packed(path: Path) -> bool:
    """True for an archive that begins as a packed bundle does."""
    try:
        with path.open("rb") as file:
            head = file.read(30 + len(MANIFEST))
    except OSError:  # whoever opens it next tells why
        return False
    return head[:4] == b"PK\3\4" and head[30:] == MANIFEST.encode()


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The folder of a bundle: `path` itself, or where a packed one is unpacked for as long as the block lasts.

    Raises:
        PlanishError: see `unpack_bundle`.
    """
    if not path.is_file():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="planish-unpacked-") as scratch:
        folder = Path(scratch, path.name.removesuffix(".zip") or "bundle")
        unpack_bundle(path, folder)
        yield folder


def unpack_bundle(path: Path, into: Path) -> Path:
    """Unpack into a new folder. Names and sizes are checked here, contents by `Bundle.check_hashes`.

    Raises:
        ArchiveRefused: not a packed bundle, or one that is unsafe or damaged; names the entry.
        PlanishError: no such file, no space, or `into` is in the way.
    """
    if os.path.lexists(into):
        raise PlanishError("There is already something of that name.", str(into), "choose another place with -o")
    try:
        with path.open("rb") as file:
            entries = _entries(file, path)
            with zipfile.ZipFile(file) as archive:
                _check_contents(_manifest(archive, entries, path), entries, path)
                _check_space(entries, into)
                _extract(archive, entries, into, path)
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        what = f"The packed bundle cannot be read: {problem.strerror or problem}."
        raise PlanishError(what, str(problem.filename or path), "give a file that `planish pack` wrote") from problem
    except _BROKEN as problem:
        raise ArchiveRefused(f"The archive is damaged: {problem}.", str(path), _HINT) from problem
    return into


def unpack_and_check(path: Path, into: Path | None = None) -> Path:
    """Unpack, and compare every file with its hash; what does not fit is removed again.

    Args:
        path: the archive.
        into: the folder to make; the archive's name without `.zip` when left out.

    Raises:
        PlanishError: see `unpack_bundle`; or a file is not what the manifest says.
    """
    plain = path.name.removesuffix(".zip")
    at = into or path.with_name(plain if plain not in ("", path.name) else f"{path.name}.planish")
    unpack_bundle(path, at)
    try:
        problems = open_bundle(at).check_hashes()
        if problems:
            raise ArchiveRefused(f"The bundle in it is not whole: {problems[0]}.", str(path), _HINT)
    except BaseException:
        shutil.rmtree(at, ignore_errors=True)
        raise
    return at


def _entries(file: BinaryIO, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Every entry by name, in the order of the archive; the layout is proved to be without gaps."""
    directory = directory_of(file)
    if directory.entries > ENTRIES:
        raise ArchiveRefused(f"It claims {directory.entries} files; {ENTRIES} are allowed.", str(path), _HINT)
    with zipfile.ZipFile(file) as archive:
        listed = archive.infolist()
    if len(listed) != directory.entries:
        raise ArchiveRefused("It claims another number of files than it lists.", str(path), _HINT)
    check_list(file, directory, listed)
    at, found, taken = 0, dict[str, zipfile.ZipInfo](), dict[str, str]()
    for entry in listed:
        if fault := _fault(entry, directory.start) or _collision(entry.filename, taken):
            raise ArchiveRefused(f"{entry.orig_filename!r} {fault}.", str(path), _HINT)
        if entry.header_offset != at:
            raise ArchiveRefused(f"{entry.filename!r} does not begin where the file before it ends.", str(path), _HINT)
        at = local_end(file, entry)
        found[entry.filename] = entry
    if at != directory.start:
        raise ArchiveRefused("There is something between the files and their list.", str(path), _HINT)
    total = sum(entry.file_size for entry in listed)
    if total > TOTAL:
        raise ArchiveRefused(f"Its files would take {total} bytes; {TOTAL} are allowed.", str(path), _HINT)
    if total > max(SMALL, RATIO * directory.end):
        raise ArchiveRefused(f"{directory.end} bytes would unpack to {total}.", str(path), _HINT)
    return found


def _fault(entry: zipfile.ZipInfo, size: int) -> str:
    """What is wrong with an entry by itself; "" when nothing is."""
    if entry.flag_bits & 0x2041:
        return "is encrypted"
    if entry.filename != entry.orig_filename or not _is_path(entry.filename):
        return "has a name that no file of a bundle can have"
    mode = entry.external_attr >> 16
    if entry.create_system != 3 or (mode and not stat.S_ISREG(mode)) or entry.external_attr & 0x10:
        return "is a symbolic link" if stat.S_ISLNK(mode) else "is not a regular file"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is compressed in a way that bundles do not use"
    if fault := _odd(entry):
        return f"has {fault} that packed bundles do not have"
    if entry.compress_size > size:
        return "claims to be larger than the archive"
    best = 1 if entry.compress_type == zipfile.ZIP_STORED else _DEFLATE
    if entry.file_size > best * entry.compress_size or (best == 1 and entry.file_size != entry.compress_size):
        return f"claims {entry.file_size} bytes, which {entry.compress_size} cannot hold"
    return ""


def _odd(entry: zipfile.ZipInfo) -> str:
    """What of an entry is not as `pack_bundle` writes it; no bit of a header is left to say something unheard."""
    if entry.flag_bits != (0 if entry.filename.isascii() else 0x800) or entry.reserved:
        return "flags"
    if entry.comment or entry.volume or not _only_sizes(entry.extra):
        return "a comment or fields"
    if entry.date_time != EPOCH or entry.external_attr != MODE or entry.internal_attr:
        return "a date or rights"
    return "" if entry.create_version == entry.extract_version else "a version"


def _is_path(name: str) -> bool:
    try:
        _PATH.validate_python(name)
    except ValidationError:
        return False
    return True


def _only_sizes(extra: bytes) -> bool:
    return not extra or (len(extra) >= 4 and struct.unpack("<2H", extra[:4]) == (1, len(extra) - 4))


def _collision(name: str, taken: dict[str, str]) -> str:
    """What a name would overwrite on a disk that ignores case, composition, or dots and spaces at the end."""
    parts = [unicodedata.normalize("NFC", part).casefold().rstrip(". ") for part in name.split("/")]
    if "" in parts:
        return "has a name that no file of a bundle can have"
    for end in range(1, len(parts)):
        folder = "folder " + "/".join(name.split("/")[:end])
        before = taken.setdefault("/".join(parts[:end]), folder)
        if before != folder:
            return f"would take the place of the {before}"
    key = "/".join(parts)
    if key in taken:
        return f"would take the place of the {taken[key]}"
    taken[key] = f"file {name}"
    return ""


def _manifest(archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo], path: Path) -> Manifest:
    entry = entries.get(MANIFEST)
    if entry is None or next(iter(entries)) != MANIFEST:
        raise ArchiveRefused(f"It does not begin with {MANIFEST}: this is not a packed bundle.", str(path), _HINT)
    if entry.file_size > LARGEST_MANIFEST:
        raise ArchiveRefused(f"The manifest claims {entry.file_size} bytes.", str(path), _HINT)
    with archive.open(entry) as source:
        return parse_manifest(source.read(), f"{path} {MANIFEST}")


def _check_contents(manifest: Manifest, entries: Mapping[str, zipfile.ZipInfo], path: Path) -> None:
    later = additions({name: Path(name) for name in entries}, manifest.targets)
    for name, entry in entries.items():
        listed = manifest.files.get(name)
        if listed is not None and listed.bytes != entry.file_size:
            what = f"{name} has {entry.file_size} bytes; the manifest says {listed.bytes}."
        elif listed is None and name not in later.files and name != MANIFEST:
            what = f"{name} is not in the manifest."
        elif listed is None and entry.file_size > _ADDED:
            what = f"{name} claims {entry.file_size} bytes."
        else:
            continue
        raise ArchiveRefused(what, str(path), _HINT)
    if missing := [name for name in manifest.files if name not in entries]:
        raise ArchiveRefused(f"{missing[0]} is missing.", str(path), _HINT)


def _check_space(entries: Mapping[str, zipfile.ZipInfo], into: Path) -> None:
    into.parent.mkdir(parents=True, exist_ok=True)
    needed, free = sum(e.file_size for e in entries.values()) + _SPARE, shutil.disk_usage(into.parent).free
    if free < needed:
        what = f"There is not enough space: {needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free."
        raise PlanishError(what, str(into.parent), "free some space, or set TMPDIR to a folder on another disk")


def _extract(archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo], into: Path, path: Path) -> None:
    into.mkdir()
    try:
        for name, entry in entries.items():
            at = into / name
            at.parent.mkdir(parents=True, exist_ok=True)
            written = 0
            with archive.open(entry) as source, at.open("xb") as sink:
                while piece := source.read(_PIECE):
                    written += len(piece)
                    sink.write(piece)
            if written != entry.file_size:
                raise ArchiveRefused(f"{name} has {written} bytes instead of {entry.file_size}.", str(path), _HINT)
    except BaseException:
        shutil.rmtree(into, ignore_errors=True)
        raise
