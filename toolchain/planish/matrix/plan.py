"""What a build has to do: for each bundle nothing, a copy from the cache, or a compile; and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from planish.matrix.cache import Cache
from planish.matrix.facts import Facts
from planish.matrix.file import Job
from planish.matrix.hashes import Hashes
from planish.matrix.key import Inputs, differences, inputs_of
from planish.matrix.record import changed_file, read_record
from planish.matrix.store import Entry
from planish_passes.errors import PlanishError

Action = Literal["none", "restore", "build", "impossible"]


@dataclass(frozen=True)
class Step:
    """What becomes of one bundle.

    Args:
        action: nothing to do, take it from the cache, compile it, or it cannot be done.
        reasons: why it is not "none", in words.
        inputs: what it is made from; None when that cannot be told.
        entry: of the cache, to restore.
        summary: what the compile said of the bundle that stands.
        error: why it is impossible.
    """

    job: Job
    action: Action
    reasons: tuple[str, ...] = ()
    inputs: Inputs | None = None
    entry: Entry | None = None
    summary: Mapping[str, Any] | None = None
    error: PlanishError | None = None


def plan(job: Job, facts: Facts, hashes: Hashes, cache: Cache, *, force: bool = False) -> Step:
    """Look at the inputs, the bundle that stands, and the cache."""
    try:
        inputs = inputs_of(job, facts, hashes)
    except PlanishError as error:
        return Step(job, "impossible", error=error)
    except OSError as error:
        told = PlanishError(
            f"The model cannot be read: {error.strerror or error}.", str(error.filename), "check its rights"
        )
        return Step(job, "impossible", error=told)
    if force:
        return Step(job, "build", ("--force",), inputs)
    record = read_record(job)
    if record is None:
        there = job.output.exists()
        reasons: tuple[str, ...] = ("a bundle of unknown inputs stands there" if there else "not built here before",)
    elif record.key == inputs.key:
        changed = changed_file(job, record)
        if changed is None:
            return Step(job, "none", (), inputs, summary=record.summary)
        gone = not Path(job.output, changed).exists()
        reasons = (
            ("the bundle is gone",)
            if not job.output.exists()
            else (f"{changed} of the bundle {'is gone' if gone else 'is not as it was written'}",)
        )
    else:
        reasons = differences(record.inputs, inputs.data)
    entry = cache.find(inputs.key)
    if entry is not None:
        return Step(job, "restore", reasons, inputs, entry, entry.summary)
    return Step(job, "build", reasons, inputs)
