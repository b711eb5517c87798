"""Run a plan: copy what is cached, compile the rest, remember what was made."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from planish.bundle.files import MANIFEST
from planish.matrix.bytes import Difference, differences_of
from planish.matrix.cache import Cache
from planish.matrix.compile import Compiled, Processes, compile_request
from planish.matrix.facts import Facts
from planish.matrix.file import Job
from planish.matrix.hashes import Hashes
from planish.matrix.key import differences, inputs_of
from planish.matrix.plan import Step
from planish.matrix.record import place, write_record
from planish.matrix.store import Entry, fingerprints
from planish_passes.errors import PlanishError

# Of what a compile says: what holds on every machine that takes the bundle from a cache.
_LASTING = ("ok", "task", "architecture", "recipe", "seconds", "peak_memory_bytes", "failed", "verdicts", "targets")
Status = Literal["up to date", "from cache", "built", "gate failed", "failed"]


@dataclass(frozen=True)
class Outcome:
    """What became of one bundle.

    Args:
        summary: what the compile said, now or when the bundle was made.
        error: why it failed.
        notes: what the user should know.
        bytes: what a second compile wrote otherwise; None when there was none.
    """

    step: Step
    status: Status
    seconds: float = 0.0
    summary: Mapping[str, Any] | None = None
    error: PlanishError | None = None
    notes: tuple[str, ...] = ()
    bytes: tuple[Difference, ...] | None = None


class Shown(Protocol):
    """Where a build tells how far it is."""

    def say(self, job: str, line: str) -> None:
        """A line about a job, or (with an empty name) about the build."""
        ...


class Executor(Protocol):
    """Where compiles run."""

    def compile(self, job: Job, say: Callable[[str], None]) -> Compiled:
        """Make the bundle of a job where it belongs. Called from several threads."""
        ...

    def stop(self) -> None:
        """End what runs; `compile` returns soon afterwards."""
        ...


@dataclass(frozen=True)
class Local:
    """On this machine, each compile in a process of its own."""

    processes: Processes = field(default_factory=Processes)

    def compile(self, job: Job, say: Callable[[str], None]) -> Compiled:
        """See Executor."""
        return compile_request(job.request, job.name, place(job), self.processes, say)

    def stop(self) -> None:
        """See Executor."""
        self.processes.stop()


@dataclass(frozen=True)
class Build:
    """One run of `planish build`.

    Args:
        jobs: compiles at the same time.
        twice: compile each bundle once more, and compare the bytes.
        done: told each outcome as it comes.
    """

    facts: Facts
    hashes: Hashes
    cache: Cache
    executor: Executor
    shown: Shown
    jobs: int = 1
    twice: bool = False
    done: Callable[[Outcome], None] = lambda outcome: None

    def run(self, steps: Sequence[Step]) -> tuple[Outcome, ...]:
        """Every step, whatever happens to the others; in their order.

        Raises:
            KeyboardInterrupt, SystemExit: after every compile has ended; what was finished is kept.
        """
        outcomes: dict[int, Outcome] = {}
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = {pool.submit(self._step, step): number for number, step in enumerate(steps)}
            waiting = set(futures)
            try:
                while waiting:
                    finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in finished:
                        outcomes[futures[future]] = future.result()
                        self.done(future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.executor.stop()
                raise
        return tuple(outcomes[number] for number in range(len(steps)))

    def _step(self, step: Step) -> Outcome:
        began = time.monotonic()
        try:
            if step.action == "impossible":
                return Outcome(step, "failed", error=step.error)
            if step.action == "none":
                return Outcome(step, "up to date", summary=step.summary)
            notes: list[str] = []
            if step.entry is not None:
                if self.cache.restore(step.entry, step.job.output):
                    hashes = {name: file.sha256 for name, file in step.entry.files.items()}
                    write_record(step.job, step.entry.inputs, hashes, step.entry.summary)
                    return Outcome(step, "from cache", time.monotonic() - began, step.summary)
                notes.append("the cache could not give it back")
            return self._compile(step, notes)
        except PlanishError as error:
            return Outcome(step, "failed", time.monotonic() - began, error=error)
        except OSError as error:
            where = str(error.filename or step.job.output)
            told = PlanishError(f"{error.strerror or error}.", where, "free some space or mend the rights, build again")
            return Outcome(step, "failed", time.monotonic() - began, error=told)

    def _compile(self, step: Step, notes: list[str]) -> Outcome:
        job = step.job
        self.shown.say(job.name, f"compile: {'; '.join(step.reasons[:3])}")
        made = self.executor.compile(job, lambda line: self.shown.say(job.name, line))
        if made.error is not None or made.summary is None:
            return Outcome(step, "failed", made.seconds, error=made.error)
        if not made.passed:
            return Outcome(step, "gate failed", made.seconds, made.summary)
        assert step.inputs is not None
        moved = differences(step.inputs.data, inputs_of(job, self.facts, self.hashes).data) or self._misread(step)
        if moved:
            notes.append(f"changed while it was built, and will be built again: {', '.join(moved)}")
            return Outcome(step, "built", made.seconds, made.summary, notes=tuple(notes))
        files, summary = fingerprints(job.output), {k: v for k, v in made.summary.items() if k in _LASTING}
        write_record(job, step.inputs.data, {name: file.sha256 for name, file in files.items()}, summary)
        self.cache.store(Entry(step.inputs.data, files, summary), job.output)
        other = self._again(step) if self.twice else None
        return Outcome(step, "built", made.seconds, made.summary, notes=tuple(notes), bytes=other)

    def _again(self, step: Step) -> tuple[Difference, ...]:
        """Compile it once more, beside, and compare."""
        job = step.job
        self.shown.say(job.name, "compile: once more, to compare the bytes")
        with tempfile.TemporaryDirectory(prefix="twice-", dir=place(job)) as folder:
            request = job.request.model_copy(update={"output": Path(folder, job.output.name)})
            second = replace(job, request=request)
            made = self.executor.compile(second, lambda line: self.shown.say(job.name, line))
            if not made.passed:
                what = "A second compile of the same inputs failed."
                raise made.error or PlanishError(what, job.name, "a gate is at the edge: see the log")
            return differences_of(job.output, second.output, self.facts.varies)

    def _misread(self, step: Step) -> tuple[str, ...]:
        """Files of the model that the compile saw with other contents than the key."""
        assert step.inputs is not None
        known = step.inputs.data["model"]["files"]
        read = json.loads((step.job.output / MANIFEST).read_bytes())["source"]["files"]
        return tuple(f"model file {f['name']}" for f in read if known.get(f["name"]) != f["sha256"])
