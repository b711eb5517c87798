"""Which linears of a model get the narrow palettes of a recipe, and which the wide ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from planish.budget import GRAPH, MEASURED_UP_TO, text_distance, units_of
from planish.calibrating import readable, shown
from planish.compiled import Progress
from planish.generation_files import TOKENIZER_FILES
from planish.recipes import RecipeSpec
from planish.request import Request
from planish.source import Source
from planish.tasks import Task
from planish_passes.clusters import cluster
from planish_passes.errors import PlanishError
from planish_passes.palette import Palette, PaletteFormat
from planish_passes.palettise import fitting, sites
from planish_passes.program import Program
from planish_passes.quantise import Plan, Quantise
from planish_passes.sensitivity import Choice, allocate, estimated, measured
from planish_passes.weights import WeightFormat

_HALF = 2  # bytes of a number that stays floating point, and of a scale, where palettes are


def formats(
    program: Program,
    recipe: RecipeSpec,
    others: WeightFormat,
    request: Request,
    task: Task,
    source: Source,
    progress: Progress,
) -> dict[str, PaletteFormat]:
    """A format for every weight that gets a palette: the recipe's own, or its wide one where that saves most error.

    Linears of the same input stay alike.

    Args:
        program: floating point, for a recipe with palettes.
        others: format of what gets no palette: tables of embeddings.

    Raises:
        PlanishError: the size that was asked for cannot be met.
    """
    assert recipe.palette is not None
    own = {n: fitting(recipe.palette, program.weights.spec(n).shape[0]) for n in sites(program)}
    allowed = _allowed(program, recipe, others, request, task, source, own)
    if allowed is None or not own:
        return own
    wide = {n: replace(f, bits=f.bits + 2) for n, f in own.items()}
    units = _units(program, own)
    errors = _errors(program, units, task, source, progress)
    choices = {
        unit: (
            Choice(next(iter(names.values())), _nbytes(program, names), errors[unit]),
            # Two bits more are a sixteenth of the error; it is not worth another run of the model.
            Choice(wide[unit], _nbytes(program, {n: wide[n] for n in names}), errors[unit] / 16),
        )
        for unit, names in units.items()
    }
    chosen = allocate(choices, allowed)
    return {n: wide[n] if chosen[unit].format == wide[unit] else own[n] for unit, names in units.items() for n in names}


def _allowed(
    program: Program,
    recipe: RecipeSpec,
    others: WeightFormat,
    request: Request,
    task: Task,
    source: Source,
    own: Mapping[str, PaletteFormat],
) -> int | None:
    """Bytes of all palettes together; None: the recipe's own."""
    count = sum(prod(program.weights.spec(n).shape) for n in own)
    if request.bits is None and request.max_size is None:
        return int(count * recipe.bits / 8) if recipe.bits and task.metric != "tokens" else None
    plan = Quantise(others).plan(program)
    integers = sum(_integers(program, n, f) for n, (f, _) in plan.weights.items() if n not in own)
    if request.bits is not None:
        left = int(request.bits / 8 * sum(prod(program.weights.spec(n).shape) for n in plan.weights)) - integers
        return _positive(left, "--bits", f"{integers / 1e6:.1f} MB of embeddings have {others.bits} bits")
    floats = sum(prod(program.weights.spec(n).shape) * _HALF for n in _floats(program, plan))
    tokenizer = sum(f.bytes for f in source.files if f.path.name in TOKENIZER_FILES) if program.states else 0
    rest = integers + floats + tokenizer + GRAPH
    assert request.max_size is not None
    return _positive(int(request.max_size) - rest, "--max-size", f"{rest / 1e6:.1f} MB are not in palettes")


def _positive(left: int, flag: str, why: str) -> int:
    if left <= 0:
        raise PlanishError(f"nothing is left for palettes: {why}", flag, "allow more")
    return left


def _floats(program: Program, plan: Plan) -> list[str]:
    return [n for n in program.weights if n not in plan.weights and program.weights.spec(n).dtype.is_floating_point]


def _integers(program: Program, name: str, format: WeightFormat) -> int:
    rows, columns = program.weights.spec(name).shape
    return int(rows * columns * format.bits / 8 + rows * (columns // format.group if format.group else 1) * _HALF)


def _nbytes(program: Program, formats: Mapping[str, PaletteFormat]) -> int:
    return sum(f.nbytes(*program.weights.spec(n).shape) for n, f in formats.items())


def _units(program: Program, own: Mapping[str, PaletteFormat]) -> dict[str, dict[str, PaletteFormat]]:
    plan = Quantise(WeightFormat(8)).plan(program)
    units = units_of(Plan({n: plan.weights[n] for n in own}, ()))
    return {unit: {n: own[n] for n in names} for unit, names in units.items()}


def _errors(
    program: Program,
    units: Mapping[str, Mapping[str, PaletteFormat]],
    task: Task,
    source: Source,
    progress: Progress,
) -> dict[str, float]:
    count = sum(prod(program.weights.spec(n).shape) for names in units.values() for n in names)
    if count > MEASURED_UP_TO or not readable(program, task, source):
        return {unit: estimated(program.weights, names, _palette) for unit, names in units.items()}
    found: dict[str, float] = {}
    every = max(1, len(units) // 10)
    program = replace(program, weights=program.weights.memoised(count * torch.float32.itemsize))
    for unit, error in measured(program, units, _palette, shown(program, task, source, few=True), text_distance):
        if len(found) % every == 0:
            progress.stage("quantise", f"measured, {len(found)} of {len(units)} groups of weights: {unit}")
        found[unit] = error
    return found


def _palette(weight: Tensor, format: PaletteFormat) -> Palette:
    return cluster(weight, fitting(format, weight.shape[0]))  # of a weight, or of a block of its rows
