"""Write down how far a compile is, and why it ended."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from planish.bundle.surroundings import tools
from planish.compiled import Compiled, Progress
from planish.exhausted import exhausted
from planish.failures import record
from planish.failures.config import plain_config
from planish.failures.gates import failed_gate
from planish.failures.postmortem import examine
from planish.failures.record import Ended, Model, Record, Refused
from planish.request import Request
from planish.source import Source

_EARLY = ("start", "source")  # what fails there is a matter of the request, and the error says it all


class Recorder:
    """Progress that is written down as it is shown.

    Args:
        shown: where it is shown.
        request: what was asked.
        output: where the bundle belongs.
    """

    def __init__(self, shown: Progress, request: Request, output: Path) -> None:
        self._shown = shown
        self._lock: int | None = None
        self._folder: Path | None = None
        made = tools()
        self._record = Record(
            began=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            output=str(output.absolute()),
            request=request.model_dump(mode="json", exclude_none=True),
            stages=(("start", ""),),
            python=made.python,
            platform=made.platform,
            versions=dict(made.packages),
        )
        with contextlib.suppress(OSError):  # a place that cannot be written to costs the record, not the compile
            begun = record.begin(output)
            if begun is not None:
                self._folder, self._lock = begun
        self._write()

    def stage(self, name: str, detail: str = "") -> None:
        """See planish.compiled.Progress."""
        self._update(stages=(*self._record.stages, (name, detail)))
        self._shown.stage(name, detail)

    def note(self, text: str) -> None:
        """See planish.compiled.Progress."""
        self._update(notes=(*self._record.notes, text))
        self._shown.note(text)

    @property
    def reached(self) -> str:
        """The stage that runs, or ran last."""
        return self._record.stage

    def ended(self, compiled: Compiled) -> str | None:
        """The compile came to its end; returns the command that explains a failed gate."""
        if compiled.failed:
            return self._gated(compiled)
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        self._close()
        return None

    def stopped(self, problem: BaseException) -> None:
        """The compile ended with an exception, which is told where to read on."""
        told = not isinstance(problem, (KeyboardInterrupt, SystemExit)) and self.reached not in _EARLY
        if told:
            problem.add_note(f"stage {self.reached}")
        self._update(ended=_ended(problem), findings=(examine(problem),), model=_model_of(problem))
        if told and self._folder is not None:
            problem.add_note(explain_command(Path(self._record.output)))
        self._close()

    def _gated(self, compiled: Compiled) -> str | None:
        drifts = {t.target: t.drift for t in compiled.targets}
        refused = [(s.name, r) for t in compiled.targets for s in t.steps for r in s.refused]
        refused += [(s.name, r) for s in compiled.steps for r in s.refused]
        rows = {Refused(pass_name=name, node=r.node, module=r.module, reason=r.reason): None for name, r in refused}
        self._update(
            ended="gate failed",
            findings=tuple(t.refusal for t in compiled.targets if t.refusal is not None),
            gates=tuple(failed_gate(target, verdict, drifts.get(target, ())) for target, verdict in compiled.failed),
            refused=tuple(rows),
            model=_model(compiled.source),
        )
        self._close()
        return explain_command(Path(self._record.output)) if self._folder is not None else None

    def _update(self, **changed: Any) -> None:
        self._record = self._record.model_copy(update=changed)
        self._write()

    def _write(self) -> None:
        if self._folder is None:
            return
        try:
            record.write(self._record, self._folder)
        except OSError:  # a full disk is what the compile itself is about to tell; half a story is worse than none
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def explain_command(output: Path) -> str:
    """What to type to learn more."""
    near = output.name if output.parent == Path.cwd() else str(output)
    return f"planish explain {near}"


@contextlib.contextmanager
def recorded(shown: Progress, request: Request, output: Path) -> Iterator[Recorder]:
    """A recorder for the time of a compile; an exception is written down on its way out."""
    recorder = Recorder(shown, request, output)
    try:
        yield recorder
    except BaseException as problem:
        try:
            recorder.stopped(problem)
        except Exception as defect:  # where memory ran out, it may run out again; the first error is the one to tell
            problem.add_note(f"it cannot be explained: {type(defect).__name__}: {defect}")
        raise


def _ended(problem: BaseException) -> Ended:
    if isinstance(problem, (KeyboardInterrupt, SystemExit)):
        return "interrupted"
    lacking = exhausted(problem)
    return "failed" if lacking is None else "out of memory" if lacking == "memory" else "out of disk"


def _model(source: Source) -> Model:
    return Model(task=source.task, architecture=source.architecture, config=plain_config(source.config))


def _model_of(problem: BaseException) -> Model | None:
    """The model that a compile was busy with, if it came that far."""
    at = problem.__traceback__
    while at is not None:
        held = at.tb_frame.f_locals.values()
        source = next((s for v in held for s in (v, getattr(v, "source", None)) if isinstance(s, Source)), None)
        if source is not None:
            return _model(source)
        at = at.tb_next
    return None
