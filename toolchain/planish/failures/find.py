"""Which failure is meant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from planish.bundle.files import MANIFEST
from planish.failures import record
from planish.failures.gates import record_of_bundle
from planish.failures.record import RECORD, Record
from planish_passes.errors import PlanishError


@dataclass(frozen=True)
class Found:
    """A failure.

    Args:
        folder: where its record lies; None when it was read from a bundle.
    """

    record: Record
    folder: Path | None


def find(path: Path | None) -> Found:
    """The failure of an output, of a bundle that was written all the same, of a record; without a path, the last one.

    Raises:
        PlanishError: nothing failed there, or it still runs.
    """
    folder = record.newest() if path is None else _folder(path)
    if folder is not None:
        found = record.read(folder)
        if found.ended == "running" and record.lives(folder if folder.is_dir() else folder.parent):
            raise PlanishError("This compile still runs.", found.output, "wait until it has ended")
        return Found(found, folder if folder.is_dir() else folder.parent)
    if path is not None and (path / MANIFEST).is_file():
        told = record_of_bundle(path)
        if told.gates:
            return Found(told, None)
        raise PlanishError("Nothing failed: every gate of this bundle passed.", str(path), f"planish report {path}")
    if path is None:
        hint = "planish compile writes a record when it fails; give the output of that compile"
        raise PlanishError("No compile failed here.", str(record.folder_of_all()), hint)
    known = [record.read(p).output for p in record.all_folders()]
    hint = f"failures that are known: {', '.join(known)}" if known else "only what failed can be explained"
    raise PlanishError("No failed compile of that output is known.", str(path), hint)


def _folder(path: Path) -> Path | None:
    if path.is_file() and path.suffix == ".json":
        return path
    if (path / RECORD).is_file():
        return path
    folder = record.folder_of(path)
    return folder if (folder / RECORD).is_file() else None
