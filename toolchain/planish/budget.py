"""A size for the whole model, and which of its weights deserve more bits than the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from planish.calibrating import shown
from planish.compiled import Progress
from planish.generation_files import TOKENIZER_FILES
from planish.recipes import find_recipe
from planish.request import Request
from planish.source import Source
from planish.tasks import Task
from planish.verify.logits import LOGITS, divergence
from planish_passes.errors import PlanishError
from planish_passes.program import Program
from planish_passes.quantise import Plan, Quantise
from planish_passes.rounding import round_to_nearest
from planish_passes.sensitivity import Choice, allocate, estimated, measured
from planish_passes.weights import WeightFormat

WIDE = 8
MEASURED_UP_TO = 1_000_000_000  # weights; above, running the model once per unit takes too long
GRAPH = 3 << 20  # bytes of an artifact that are no weights: the graph itself, tokenizer files aside


@dataclass(frozen=True)
class Budget:
    """What the quantised weights of an artifact may take.

    Args:
        nbytes: of integers, scales and zero points together.
        scale: bytes of one scale, as counted in `nbytes`.
    """

    nbytes: int
    scale: int


def formats(
    program: Program, format: WeightFormat, request: Request, task: Task, source: Source, progress: Progress
) -> dict[str, WeightFormat]:
    """Formats of weights that are not the recipe's own; {} when the request names no size.

    Raises:
        PlanishError: the size cannot be met.
    """
    recipe = find_recipe(request.recipe)
    if request.bits is None and request.max_size is None:
        if recipe.bits is None or task.metric == "tokens":
            return {}
        request = request.model_copy(update={"bits": recipe.bits})
    if format.bits >= WIDE:
        raise PlanishError(
            f"recipe {request.recipe} has no narrower weights than {format.bits} bits",
            "--bits" if request.bits is not None else "--max-size",
            "choose --recipe int4 with it",
        )
    plan = Quantise(format).plan(program)
    tokenizer = sum(f.bytes for f in source.files if f.path.name in TOKENIZER_FILES)
    allowed = budget(request, program, plan, tokenizer)
    # Encoders' 8-bit kernels take one scale per channel; those of language models take groups.
    channel = find_recipe("int8").format
    wide = {n: replace(f, bits=WIDE, symmetric=True) for n, (f, _) in plan.weights.items()}
    if task.metric != "tokens" and channel is not None:
        wide = dict.fromkeys(wide, channel)
    return spend(program, plan, wide, allowed, _feeds(program, task, source), progress)


def _feeds(program: Program, task: Task, source: Source) -> list[Mapping[str, Tensor]]:
    """A little of what the program will read; [] where it cannot be made alone."""
    if task.dependent:
        return []
    if task.metric == "tokens":
        return shown(program, task, source, few=True)
    longest = program.axes.get("sequence", (0, 0))[1]
    samples = task.samples(source.tokenizer_files, source.config, longest)
    return [
        {p.name: s.get(p.name, torch.zeros_like(next(iter(s.values())))) for p in program.inputs} for s in samples[:8]
    ]


def budget(request: Request, program: Program, plan: Plan, beside: int) -> Budget:
    """What the request asks for.

    Args:
        request: `bits` counts float16 scales, as formats of files do; `max_size` float32 ones, the largest of all
            targets.
        program: floating point.
        plan: what is quantised.
        beside: bytes of other files in an artifact's folder.

    Raises:
        PlanishError: what is not quantised is larger than the size already.
    """
    if request.bits is not None:
        weights = sum(prod(program.weights.spec(name).shape) for name in plan.weights)
        return Budget(int(request.bits * weights / 8), 2)
    assert request.max_size is not None
    rest = sum(program.weights.spec(n).nbytes for n in program.weights if n not in plan.weights) + beside + GRAPH
    left = int(request.max_size) - rest
    if left <= 0:
        raise PlanishError(
            f"{rest / 1e6:.1f} MB are not covered by quantisation: constants, the graph, the tokenizer",
            f"--max-size {request.max_size / 1e6:g}MB",
            "allow a larger size",
        )
    return Budget(left, 4)


def spend(
    program: Program,
    plan: Plan,
    wider: Mapping[str, WeightFormat],
    allowed: Budget,
    feeds: Sequence[Mapping[str, Tensor]],
    progress: Progress,
) -> dict[str, WeightFormat]:
    """A format for every weight of the plan: its own, or its wider one where that saves most error per byte.

    Linears of the same input stay alike, so that they can still be joined.

    Raises:
        PlanishError: not even the plan's own formats fit.
    """
    own = {unit: {n: plan.weights[n][0] for n in names} for unit, names in units_of(plan).items()}
    wide = {unit: {n: wider[n] for n in formats} for unit, formats in own.items()}
    errors = _errors(program, own, feeds, progress)
    choices = {
        unit: (
            Choice(next(iter(own[unit].values())), _nbytes(program, own[unit], allowed.scale), errors[unit]),
            # The error of 8 bits is about 1/256 of that of 4; it is not worth another run of the model.
            Choice(next(iter(wide[unit].values())), _nbytes(program, wide[unit], allowed.scale), errors[unit] / 256),
        )
        for unit in own
    }
    chosen = allocate(choices, allowed.nbytes)
    return {n: f for unit, c in chosen.items() for n, f in (wide if c.format.bits == WIDE else own)[unit].items()}


def text_distance(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> float:
    """Mean KL divergence of next-token distributions; for other outputs the squared error as a share of the square."""
    if LOGITS in truth and truth[LOGITS].dim() == 3:
        return float(divergence(found[LOGITS], truth[LOGITS]).mean())
    errors = [float((found[n] - t).square().sum() / t.square().sum().clamp(min=1e-12)) for n, t in truth.items()]
    return sum(errors) / len(errors)


def _errors(
    program: Program,
    units: Mapping[str, Mapping[str, WeightFormat]],
    feeds: Sequence[Mapping[str, Tensor]],
    progress: Progress,
) -> dict[str, float]:
    weights = sum(prod(program.weights.spec(name).shape) for unit in units.values() for name in unit)
    if weights > MEASURED_UP_TO or not feeds:
        return {unit: estimated(program.weights, formats, round_to_nearest) for unit, formats in units.items()}
    found: dict[str, float] = {}
    every = max(1, len(units) // 10)
    program = replace(program, weights=program.weights.memoised(weights * torch.float32.itemsize))
    for unit, error in measured(program, units, round_to_nearest, feeds, text_distance):
        if len(found) % every == 0:
            progress.stage("quantise", f"measured, {len(found)} of {len(units)} groups of weights: {unit}")
        found[unit] = error
    return found


def units_of(plan: Plan) -> dict[str, list[str]]:
    """Weights that read the same input, under the name of the first."""
    by_input: dict[object, list[str]] = defaultdict(list)
    for name, (format, nodes) in plan.weights.items():
        alone = len(nodes) > 1 or "embedding" in str(nodes[0].target)
        by_input[name if alone else (nodes[0].args[0], format)].append(name)
    return {names[0]: names for names in by_input.values()}


def _nbytes(program: Program, formats: Mapping[str, WeightFormat], scale: int) -> int:
    total = 0.0
    for name, format in formats.items():
        rows, columns = program.weights.spec(name).shape
        groups = rows * (columns // format.group if format.group else 1)
        total += rows * columns * format.bits / 8 + groups * (scale + (0 if format.symmetric else format.bits / 8))
    return int(total)
