"""A build as the command line asks for it: the file, the installation, the caches, the plan."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from planish.matrix.cache import Cache, Note
from planish.matrix.facts import Facts, read_facts
from planish.matrix.file import Job, Matrix, load_matrix
from planish.matrix.hashes import Hashes
from planish.matrix.plan import Step, plan
from planish.matrix.run import Build, Executor, Outcome, Shown
from planish_passes.errors import PlanishError


@dataclass(frozen=True)
class Work:
    """An opened file and what its plan depends on."""

    matrix: Matrix
    facts: Facts
    hashes: Hashes
    cache: Cache

    @staticmethod
    def open(file: Path, cache: str | None, note: Note) -> Work:
        """Read and check the file.

        Args:
            file: planish.toml.
            cache: folder or URL that wins over the file's; None = the file's, the environment's or the user's own.
            note: told what the cache cannot do.

        Raises:
            PlanishError: see `load_matrix`, or the cache cannot be opened.
            OSError: the local cache cannot be written.
        """
        # Who names a cache in the file wants it, but facts and hashes are needed before the file can be checked.
        early = Cache(None, note).local.root if cache is None or "://" in cache else Cache(cache, note).local.root
        facts = read_facts(early / "facts")
        matrix = load_matrix(file, facts.names)
        return Work(matrix, facts, Hashes(early / "hashes.json"), Cache(cache or matrix.cache, note))

    def select(self, only: Iterable[str]) -> tuple[Job, ...]:
        """The jobs whose bundle, model or recipe matches one of the patterns; all, when there are none.

        Raises:
            PlanishError: a pattern matches nothing.
        """
        patterns, jobs = list(only), self.matrix.jobs
        for pattern in patterns:
            if not any(_matches(job, pattern) for job in jobs):
                known = list(dict.fromkeys(name for job in jobs for name in (job.name, job.model, job.recipe)))
                near = difflib.get_close_matches(pattern, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"bundles: {', '.join(job.name for job in jobs)}"
                raise PlanishError(f"Nothing is called {pattern!r}.", str(self.matrix.file), hint)
        return tuple(job for job in jobs if not patterns or any(_matches(job, p) for p in patterns))

    def plan(self, jobs: Sequence[Job], force: bool = False) -> tuple[Step, ...]:
        """What is to be done for each."""
        try:
            return tuple(plan(job, self.facts, self.hashes, self.cache, force=force) for job in jobs)
        finally:
            self.hashes.keep()

    def run(
        self,
        steps: Sequence[Step],
        executor: Executor,
        shown: Shown,
        jobs: int = 1,
        twice: bool = False,
        done: Callable[[Outcome], None] = lambda outcome: None,
    ) -> tuple[Outcome, ...]:
        """Do it; see `Build`."""
        try:
            return Build(self.facts, self.hashes, self.cache, executor, shown, jobs, twice, done).run(steps)
        finally:
            self.hashes.keep()


def _matches(job: Job, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in (job.name, job.model, job.recipe))
