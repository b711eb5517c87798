"""The record of a compile that did not succeed: where it lies and what it holds.

One folder per output in the user's cache, overwritten by the next compile of that output and removed by one that
succeeds. It is written when the compile begins and at every stage, so that a process that was killed has one, too.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from planish.bundle.files import write_whole
from planish.bundle.owned import claim, reclaim
from planish_passes.errors import PlanishError

RECORD = "record.json"
_MOST = 20  # outputs that records are kept of
Ended = Literal["running", "failed", "gate failed", "interrupted", "out of memory", "out of disk"]


class Stored(BaseModel):
    """A part of a record."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")


class Finding(Stored):
    """One thing that could not be done.

    Args:
        target: what it was lowered for; empty before that.
        kind: class of the exception.
        what, where, hint: the error's three lines.
        pass_name: the pass that it stopped in; `ran`: those before it.
        node, op, module: of the program; `source`: the line of the model's code that the node comes from.
        graph: the node and its neighbours, as text.
        traceback: of Python.
    """

    target: str = ""
    kind: str
    what: str
    where: str = ""
    hint: str = ""
    pass_name: str = ""
    ran: tuple[str, ...] = ()
    node: str = ""
    op: str = ""
    module: str = ""
    source: str = ""
    graph: tuple[str, ...] = ()
    traceback: str = ""


class FailedGate(Stored):
    """A gate that failed.

    Args:
        metrics: those beyond their limits, as text: "relative 0.5 > limit 1e-05 (case padded)".
        node, op, module, error: where the artifact parts from the program.
        drift: the layers that are off most, as text.
    """

    target: str
    check: str
    reason: str
    metrics: tuple[str, ...] = ()
    node: str = ""
    op: str = ""
    module: str = ""
    error: float | None = None
    drift: tuple[str, ...] = ()


class Refused(Stored):
    """What a pass looked at and left as it was."""

    pass_name: str
    node: str
    module: str
    reason: str


class Model(Stored):
    """The model, without weights."""

    task: str
    architecture: str
    config: dict[str, Any]


class Record(Stored):
    """What is known of one compile.

    Args:
        output: the bundle that was asked for, absolute.
        request: see planish.request.
        stages: (name, detail) in order; the last is the one that it ended in.
        notes: what was told on the way.
        versions: packages that took part.
    """

    version: Literal[1] = 1
    ended: Ended = "running"
    began: str
    output: str
    request: dict[str, Any]
    stages: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    gates: tuple[FailedGate, ...] = ()
    refused: tuple[Refused, ...] = ()
    model: Model | None = None
    peak_memory: int | None = None
    python: str = ""
    platform: str = ""
    versions: dict[str, str] = {}

    @property
    def stage(self) -> str:
        """Where it ended."""
        return self.stages[-1][0] if self.stages else "start"


def folder_of_all() -> Path:
    """Where records lie: in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "planish", "failures")


def folder_of(output: Path) -> Path:
    """Where the record of an output lies, or would."""
    return folder_of_all() / hashlib.sha256(os.fsencode(os.path.realpath(output))).hexdigest()[:16]


def begin(output: Path) -> tuple[Path, int | None] | None:
    """A fresh folder for the record of an output, and the handle that shows that its process lives.

    None when another process compiles to the same output.

    Raises:
        OSError: it cannot be made.
    """
    folder = folder_of(output)
    folder.mkdir(parents=True, exist_ok=True)
    free, lock = claim(folder)
    if not free:
        return None
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    newest = sorted(folder_of_all().iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)
    for old in newest[_MOST:]:
        reclaim(old)
    return folder, lock


def write(record: Record, folder: Path) -> None:
    """Write, or replace.

    Raises:
        OSError: the file system refused.
    """
    write_whole(folder / RECORD, record.model_dump_json(indent=1).encode("utf-8", "replace"))


def read(path: Path) -> Record:
    """A record by its file or folder.

    Raises:
        PlanishError: there is none, or it cannot be read.
    """
    file = path / RECORD if path.is_dir() else path
    try:
        return Record.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as problem:
        hint = "compile again: the next compile writes a new one"
        raise PlanishError("The record of the failed compile cannot be read.", str(file), hint) from problem


def all_folders() -> list[Path]:
    """Folders of all records, the youngest first."""
    found = sorted(folder_of_all().glob(f"*/{RECORD}"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
    return [p.parent for p in found]


def newest() -> Path | None:
    """The folder of the youngest record."""
    return next(iter(all_folders()), None)


def lives(folder: Path) -> bool:
    """True when the process that writes the record has not ended."""
    free, lock = claim(folder)
    if lock is not None:
        os.close(lock)
    return not free
