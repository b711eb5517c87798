"""A bundle as one file, NAME.planish.zip: the same files, in an order and with headers that follow from nothing else.

Equal bundles make equal archives. (Deflated ones are equal as long as zlib's version is.)
"""

from __future__ import annotations

import hashlib
import os
import secrets
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from planish.bundle.additions import additions
from planish.bundle.files import settle_file, settle_folder, walk
from planish.bundle.manifest import MANIFEST, SIGNATURE
from planish.bundle.read import Bundle, open_bundle
from planish.bundle.unpack import ENTRIES, EPOCH, MODE, RATIO, SMALL
from planish_passes.errors import PlanishError

SUFFIX = ".zip"
_UNIX = 3
_PIECE = 1 << 20


@dataclass(frozen=True)
class Packed:
    """An archive that was written."""

    path: Path
    files: int
    bytes: int
    deflated: bool


def pack_bundle(path: Path, into: Path | None = None, *, deflate: bool = False, replace: bool = False) -> Packed:
    """Pack a whole bundle, its signature and its evidence included.

    Args:
        path: the bundle.
        into: the archive; NAME.planish.zip beside the bundle when left out.
        deflate: compress. Weights hardly shrink, and an app cannot map a compressed file into memory.
        replace: an older archive may be overwritten.

    Raises:
        PlanishError: no bundle, a damaged one, or a file that is in the way.
    """
    bundle = open_bundle(path)
    if problems := bundle.check_hashes():
        hint = "copy it again from where it was made, or compile it again; then pack it"
        raise PlanishError(f"The bundle is not whole, so it is not packed: {problems[0]}.", str(bundle.root), hint)
    at = (into or bundle.root.with_name(bundle.root.name + SUFFIX)).absolute()
    if os.path.lexists(at) and not (replace and at.is_file()):
        raise PlanishError("There is already something of that name.", str(at), "choose another name, or --replace it")
    files = dict(_ordered(bundle))
    if len(files) > ENTRIES:
        raise PlanishError(f"A packed bundle holds at most {ENTRIES} files.", str(path), "ship the folder")
    at.parent.mkdir(parents=True, exist_ok=True)
    new = at.with_name(f".{at.name}.{secrets.token_hex(4)}")
    try:
        _write(bundle, files, new, deflate)
        total = sum(file.stat().st_size for file in files.values())
        if deflate and total > max(SMALL, RATIO * new.stat().st_size):  # no reader would open it
            deflate = False
            _write(bundle, files, new, deflate)
        settle_file(new)
        os.replace(new, at)
    finally:
        new.unlink(missing_ok=True)
    settle_folder(at.parent)
    return Packed(at, len(files), at.stat().st_size, deflate)


def _ordered(bundle: Bundle) -> Iterator[tuple[str, Path]]:
    """What a reader wants to see first, first."""
    found = dict(walk(bundle.root))
    later = additions(found, bundle.manifest.targets).files
    first = [name for name in (MANIFEST, SIGNATURE) if name in found]
    for name in [*first, *sorted(set(found) - set(first))]:
        if name not in bundle.manifest.files and name not in later and name != MANIFEST:
            raise PlanishError(f"{name} came into the bundle meanwhile.", str(bundle.root), "remove it, and pack again")
        yield name, found[name]


def _write(bundle: Bundle, files: dict[str, Path], at: Path, deflate: bool) -> None:
    with zipfile.ZipFile(at, "w") as archive:
        for name, path in files.items():
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.create_system, entry.external_attr = _UNIX, MODE
            entry.compress_type = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
            entry.file_size = path.stat().st_size  # decides about 64 bit sizes
            digest = hashlib.sha256()
            with path.open("rb") as source, archive.open(entry, "w") as sink:
                while piece := source.read(_PIECE):
                    digest.update(piece)
                    sink.write(piece)
            listed = bundle.manifest.files.get(name)
            if listed is not None and listed.sha256 != digest.hexdigest():
                raise PlanishError(f"{name} changed while it was packed.", str(path), "pack it again")
