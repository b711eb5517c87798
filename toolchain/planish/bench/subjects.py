"""Which artifacts can be measured here, and how each is."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from planish.bench.calls import Calls
from planish.bench.process import Subject, Told
from planish.bench.schema import SubjectEntry
from planish.bench.writing import Writing
from planish.bundle import Bundle
from planish.language import TASK, open_language
from planish.verify.golden import golden_inputs
from planish.verify.lowering import Execution
from planish_passes.errors import PlanishError
from planish_targets import registry
from planish_targets.contract import Artifact, Runner, Unavailable


def subjects(
    bundles: Sequence[Bundle], targets: Sequence[str], execution: Execution
) -> Iterator[Calls | Writing | str]:
    """Everything that runs here, in the order of bundles and targets; a sentence for what does not.

    Raises:
        PlanishError: a target that was named is not there or cannot be run here.
    """
    for bundle in bundles:
        for name in bundle.named(targets):
            entry = bundle.manifest.targets.get(name)
            if not targets and (entry is None or entry.artifact is None):
                yield f"{bundle.manifest.name}, {name}: there is no artifact"
                continue
            artifact = bundle.artifact(name)
            runner = execution.runner(registry.find(name.partition("/")[0]), artifact)
            made = _subject(bundle, name, artifact, runner, execution)
            if isinstance(made, str) and targets:
                raise PlanishError(f"{name} cannot be measured here: {made}.", str(bundle.root), "planish doctor")
            yield f"{bundle.manifest.name}, {name}: {made}" if isinstance(made, str) else made


def _subject(
    bundle: Bundle, name: str, artifact: Artifact, runner: Runner | Unavailable, execution: Execution
) -> Calls | Writing | str:
    if isinstance(runner, Unavailable):
        return runner.reason
    if bundle.manifest.task == TASK:
        if name.partition("/")[0] in execution.commands:
            return "a language model is measured by planish's own runners; measure it there, and --import the result"
        vocabulary = int(open_language(bundle.root).tokenizer.vocab_size)
        return Writing(bundle, name, artifact, runner, execution.timeout, vocabulary)
    if not golden_inputs(bundle, name):
        return "the bundle stores no golden inputs: compile it with checks"
    return Calls(bundle, name, artifact, runner, execution.timeout)


def entry(id: str, subject: Subject, told: Told) -> SubjectEntry:
    """The subject as the file names it."""
    manifest = subject.bundle.manifest
    artifact = manifest.targets[subject.target].artifact
    assert artifact is not None
    return SubjectEntry(
        id=id,
        bundle=manifest.name,
        seal=manifest.sha256,
        target=subject.target,
        artifact=artifact.sha256,
        bytes=artifact.bytes,
        recipe=manifest.recipe.name,
        evidence=told.evidence,
        runtime=told.runtime,
        versions=dict(told.versions),
    )


def windows(course: Sequence[tuple[float, float]], seconds: float, count: int = 12) -> list[tuple[float, int, float]]:
    """(begin, calls, median seconds) of equal parts of a long run; parts without a call are left out."""
    length, found = seconds / count, []
    for number in range(count):
        inside = [s for at, s in course if number * length <= at < (number + 1) * length]
        if inside:
            found.append((number * length, len(inside), statistics.median(inside)))
    return found
