"""Checks that are asked together: each says what it wants computed, and goes on with the answers.

What several of them want of one program is computed in one walk over its weights, and equal runs once; what they want
of an artifact is answered by one process.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, fx

from planish_passes.interpret import Run, Tap, interpret_all
from planish_passes.memory import give_back_memory
from planish_passes.program import Program
from planish_targets import runner as protocol
from planish_targets.contract import Artifact, Runner

TOGETHER = 1024  # tokens that one walk reads at most: activations of all runs are in memory
TOKENS = "input_ids"

T = TypeVar("T")
Ran = protocol.Ran | protocol.Broke


@dataclass(frozen=True)
class Walk:
    """Runs of a program."""

    program: Program
    runs: Sequence[Run]


@dataclass(frozen=True)
class Asked:
    """Calls of an artifact; each finds it freshly opened."""

    runner: Runner
    artifact: Artifact
    calls: Sequence[protocol.Call]
    threads: int
    timeout: float


Steps = Generator[Walk | Asked, Any, T]
"""What computes a T, and waits at each `yield` for what it asked for: outputs of runs, or answers to calls."""


def walked(program: Program, runs: Sequence[Run]) -> Steps[list[dict[str, Tensor]]]:
    """Outputs of each run, for `yield from`."""
    found: list[dict[str, Tensor]] = yield Walk(program, runs)
    return found


def asked(
    runner: Runner, artifact: Artifact, calls: Sequence[protocol.Call], threads: int, timeout: float
) -> Steps[list[Ran]]:
    """The answer to each call, for `yield from`."""
    found: list[Ran] = yield Asked(runner, artifact, calls, threads, timeout)
    return found


def known(value: T) -> Steps[T]:
    """Steps to what needs none."""
    yield from ()
    return value


def alone(steps: Steps[T]) -> T:
    """What one check finds."""
    result: T = together([steps])[0]
    return result


def together(checks: Sequence[Steps[Any]]) -> list[Any]:
    """What each check finds. Artifacts are called when every check that is not done yet waits for one."""
    results: dict[int, Any] = {}
    waiting: dict[int, Walk | Asked] = {}
    answers: dict[int, Any] = dict.fromkeys(range(len(checks)))
    while True:
        for number in list(answers):
            try:
                waiting[number] = checks[number].send(answers.pop(number))  # what was looked at is not kept
            except StopIteration as end:
                results[number] = end.value
        if not waiting:
            return [results[number] for number in range(len(checks))]
        walks = {n: w for n, w in waiting.items() if isinstance(w, Walk)}
        answers = _walk(walks) if walks else _ask({n: w for n, w in waiting.items() if isinstance(w, Asked)})
        waiting = {n: w for n, w in waiting.items() if n not in answers}


def _ask(waiting: Mapping[int, Asked]) -> dict[int, list[Ran]]:
    """Answers for those that wait for the same artifact as the first."""
    first = next(iter(waiting.values()))
    chosen = {n: a for n, a in waiting.items() if replace(a, calls=()) == replace(first, calls=())}
    calls = [call for a in chosen.values() for call in a.calls]
    found = iter(protocol.run_all(first.runner, first.artifact, calls, threads=first.threads, timeout=first.timeout))
    return {n: [next(found) for _ in a.calls] for n, a in chosen.items()}


def _walk(waiting: Mapping[int, Walk]) -> dict[int, list[dict[str, Tensor]]]:
    """Outputs for those that wait for the same program as the first."""
    program = next(iter(waiting.values())).program
    chosen = {n: w for n, w in waiting.items() if w.program is program}
    merged: list[list[Run]] = []
    places: dict[int, list[int]] = {n: [_place(merged, run) for run in w.runs] for n, w in chosen.items()}
    found: list[dict[str, Tensor]] = []
    for runs in _portions([_merged(same) for same in merged]):
        found += interpret_all(program, runs)
    give_back_memory()
    return {n: [found[place] for place in at] for n, at in places.items()}


def _place(merged: list[list[Run]], run: Run) -> int:
    """Where a run is computed: with an equal one, or alone."""
    for place, others in enumerate(merged):
        if _equal(others[0], run):
            others.append(run)
            return place
    merged.append([run])
    return len(merged) - 1


def _equal(a: Run, b: Run) -> bool:
    if (a.compute, a.round_to) != (b.compute, b.round_to) or a.instead or b.instead or a.forced or b.forced:
        return False
    return a.inputs.keys() == b.inputs.keys() and all(_same(t, b.inputs[name]) for name, t in a.inputs.items())


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b))


def _merged(runs: Sequence[Run]) -> Run:
    taps = [run.tap for run in runs if run.tap is not None]
    returns = () if any(not run.returns for run in runs) else tuple({name for run in runs for name in run.returns})
    return replace(runs[0], tap=_all(taps) if taps else None, returns=returns)


def _all(taps: Sequence[Tap]) -> Tap:
    def tap(node: fx.Node, value: Tensor) -> None:
        for each in taps:
            each(node, value)

    return tap


def _portions(runs: Sequence[Run]) -> Iterator[list[Run]]:
    """Neighbours that fit into one walk; what reads no tokens goes alone."""
    portion: list[Run] = []
    room = TOGETHER
    for run in runs:
        size = run.inputs[TOKENS].numel() if TOKENS in run.inputs else TOGETHER
        if portion and size > room:
            yield portion
            portion, room = [], TOGETHER
        portion.append(run)
        room -= size
    if portion:
        yield portion
