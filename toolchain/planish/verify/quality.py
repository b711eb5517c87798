"""Did tracing or quantisation hurt? A program against the original model, which transformers loads on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from planish.exhausted import exhausted
from planish.untraceable import first_line, place
from planish.verdict import Failed, Metric, Passed, Verdict
from planish.verify.cases import Case
from planish.verify.compare import Outputs, agreement, pooled, similarity, worst
from planish.verify.diverge import against_model
from planish.verify.together import Steps, walked
from planish_passes.errors import PlanishError
from planish_passes.interpret import Run, interpret
from planish_passes.program import Program
from planish_targets.contract import Evidence

CAPTURE_LIMIT = 1e-4  # relative; float32 rounding of deep models stays below, a lost mask or bias does not


def eager(model: nn.Module, cases: Sequence[Case], outputs: Sequence[str]) -> dict[str, Outputs]:
    """The original model's outputs, case by case.

    Raises:
        PlanishError: it stops at one of them.
    """
    results: dict[str, Outputs] = {}
    with torch.no_grad():
        for case in cases:
            with asking(model, case.inputs):
                given = model(**case.inputs, return_dict=True)
            results[case.name] = {o: given[o] for o in outputs}
    return results


@contextmanager
def asking(model: nn.Module, inputs: Mapping[str, Tensor]) -> Iterator[None]:
    """While the original model runs on these inputs.

    Raises:
        PlanishError: it stops; names what it was given, and the line.
    """
    try:
        yield
    except (IndexError, ValueError, RuntimeError) as problem:
        if exhausted(problem):
            raise
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in inputs.items())
        raise PlanishError(
            f"the original model stops at {shapes}: {first_line(problem)}",
            place(problem) or type(model).__name__,
            "its config promises what its weights do not have (positions, token ids): mend config.json; "
            "or leave the checks out (--no-verify)",
        ) from problem


def run_program(program: Program, cases: Sequence[Case]) -> dict[str, Outputs]:
    """A program's outputs, case by case."""
    return {c.name: interpret(program, c.inputs) for c in cases}


def held(program: Program) -> Program:
    """The program, but it reads each weight once, however often it runs, and keeps it.

    That takes the room of the original model's weights, once that has left memory: drop it before anything else does.
    """
    size = sum(program.weights.spec(name).nbytes for name in program.weights)
    return replace(program, weights=program.weights.memoised(size))


def check_capture(
    program: Program,
    original: Callable[[], nn.Module],
    cases: Sequence[Case],
    truth: Mapping[str, Outputs],
    limit: float | None,
) -> Verdict:
    """The float program must compute what the model computes.

    Args:
        original: loads the model again, to find the first layer that differs.
        truth: what it answered.
    """
    found = run_program(held(program), cases)
    relative = worst(cases, found, truth, "relative")
    absolute = worst(cases, found, truth, "max_abs")
    gate = Metric("relative", relative.value, limit or CAPTURE_LIMIT, case=relative.case)
    metrics = (gate, Metric("max_abs", absolute.value, case=absolute.case))
    if gate.ok:
        return Passed("capture", Evidence.EXECUTED, metrics, "torch CPU")
    diverged = against_model(program, original(), next(c for c in cases if c.name == relative.case), gate.limit or 0)
    return Failed(
        "capture", Evidence.EXECUTED, "the traced program differs from the model", metrics, "torch CPU", diverged
    )


def check_quality(
    program: Program,
    original: Callable[[], nn.Module],
    cases: Sequence[Case],
    truth: Mapping[str, Outputs],
    *,
    metric: str,
    cosine: float,
    agree: float,
) -> Steps[Verdict]:
    """A yardstick must stay close enough to the original model, as the recipe declares.

    Args:
        original: loads the model again, to find the first layer that differs.
        metric: "embedding" gates the cosine of mean-pooled outputs; "values" that of whole outputs; "argmax" as well,
            and the share of equal decisions.
        cosine: smallest cosine that passes.
        agree: smallest share of equal decisions that passes.
    """
    told = yield from walked(program, [Run(c.inputs) for c in cases])
    found = {c.name: outputs for c, outputs in zip(cases, told, strict=True)}
    metrics = [Metric("max_abs", (w := worst(cases, found, truth, "max_abs")).value, case=w.case)]
    rows = worst(cases, found, truth, "cosine")
    if metric == "embedding":
        name = next(iter(truth[cases[0].name]))
        similar = similarity(pooled(cases, found, name), pooled(cases, truth, name))
        metrics.insert(0, Metric("cosine", float(similar.min()), cosine, at_most=False))
        metrics.append(Metric("cosine_token", rows.value, case=rows.case))
    else:
        # Not row by row: the direction of a few logits near zero says nothing about a decision.
        whole = worst(cases, found, truth, "cosine_all")
        metrics.insert(0, Metric("cosine", whole.value, cosine, at_most=False, case=whole.case))
    if metric == "argmax":
        metrics.append(Metric("agreement", agreement(cases, found, truth), agree, at_most=False))
    if all(m.ok for m in metrics):
        return Passed("quality", Evidence.EXECUTED, tuple(metrics), "torch CPU")
    diverged = against_model(program, original(), next(c for c in cases if c.name == rows.case), 1 - cosine)
    reason = "the program is too far from the original model"
    return Failed("quality", Evidence.EXECUTED, reason, tuple(metrics), "torch CPU", diverged)
