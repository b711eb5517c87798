"""Quantise the shared program, once: choose the rounding, make the integers, keep them on disk for every target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from planish.calibrating import readable, shown
from planish.compiled import Progress
from planish.recipes import RecipeSpec
from planish.request import Request
from planish.source import Source
from planish.tasks import Task
from planish_passes import pipeline
from planish_passes.calibrate import Format, Made, calibrate
from planish_passes.errors import PlanishError
from planish_passes.infra import Outcome, run_passes
from planish_passes.palette import INDICES, TABLES, Palette, PaletteFormat
from planish_passes.program import Program
from planish_passes.quantise import SCALES, VALUES, ZEROS, Quantise, Rounder
from planish_passes.rounding import round_to_nearest, search
from planish_passes.settle import Shelf, settle, settle_quantised
from planish_passes.weights import WeightFormat

Rounding = Literal["nearest", "search", "calibrated"]
CALIBRATED_UP_TO = 1_000_000_000  # weights; above, calibration takes longer than people wait for unasked
CHECKED_UP_TO = 2_000_000_000  # weights; the original runs in float32, four bytes each
DAMPING, PALETTE_DAMPING = 0.01, 0.05  # see curvature


def weight_format(request: Request, recipe: RecipeSpec, task: Task) -> WeightFormat | None:
    """The recipe's format for this task, with the request's own group and symmetry."""
    format = recipe.weights(task.metric)
    if format is None:
        return None
    group = format.group if request.group is None else request.group
    symmetric = format.symmetric if request.symmetric is None else request.symmetric
    return replace(format, group=group, symmetric=symmetric)


def rounding(request: Request, format: WeightFormat | None, task: Task, weights: int) -> Rounding:
    """What was asked for; else nearest for 8 bits, and for fewer the best that the size of the model allows."""
    if request.rounding == "calibrated" and (task.metric != "tokens" or task.dependent):
        raise PlanishError(
            "calibration is for language models", f"task {task.name}", "choose --rounding search, or nearest"
        )
    if request.rounding != "auto":
        return request.rounding
    if format is None or format.bits >= 8 or weights > CALIBRATED_UP_TO:
        return "nearest"
    return "calibrated" if task.metric == "tokens" and not task.dependent else "search"


def palette_rounding(request: Request, program: Program, task: Task, source: Source, weights: int) -> Rounding:
    """`calibrated` where there is text to look at and the model is not too large; else k-means over the weights alone.

    Raises:
        PlanishError: calibration was asked for, and there is nothing to calibrate with.
    """
    if request.rounding in ("nearest", "search"):
        return "search"
    can = readable(program, task, source)
    if request.rounding == "calibrated" and not can:
        raise PlanishError(
            "there is nothing to calibrate with: this program does not read text, or the model has no tokenizer",
            f"task {task.name}, program {task.entry}",
            "choose --rounding search",
        )
    return "calibrated" if can and (request.rounding == "calibrated" or weights <= CALIBRATED_UP_TO) else "search"


def checked(request: Request, weights: int) -> bool:
    """Whether artifacts are checked: as asked for, else up to a size whose original runs in ordinary memory."""
    return weights <= CHECKED_UP_TO if request.verify is None else request.verify


def quantise(
    program: Program,
    format: WeightFormat,
    how: Rounding,
    source: Source,
    task: Task,
    folder: Path,
    progress: Progress,
    formats: Mapping[str, WeightFormat] | None = None,
) -> Outcome:
    """The quantised program; its integers are computed here and lie in `folder` from then on.

    Args:
        formats: weight name -> another format for that weight.
    """
    every = formats or {}
    if how == "calibrated":
        plan = Quantise(format, every).plan(program).weights
        chosen = {name: format for name, (format, _) in plan.items()}
        shelf = _calibrated(program, chosen, shown(program, task, source), folder, progress, DAMPING)
        program = replace(program, weights=shelf.onto(program.weights))
    rounder: Mapping[Rounding, Rounder] = {"nearest": round_to_nearest, "search": search}
    outcome = run_passes(program, pipeline.quantise(format, every, rounder.get(how)))
    if how == "calibrated":
        return outcome
    return Outcome(settle_quantised(outcome.program, folder), outcome.steps)


def palettise(
    program: Program,
    formats: Mapping[str, PaletteFormat],
    how: Rounding,
    source: Source,
    task: Task,
    folder: Path,
    progress: Progress,
) -> Outcome:
    """Linears as palettes; indices and tables lie in `folder` from then on.

    Args:
        formats: of every weight that gets one.
        how: `calibrated` looks at what linears read; the others are k-means over the weights alone.
    """
    if how == "calibrated":
        shelf = _calibrated(program, formats, shown(program, task, source), folder, progress, PALETTE_DAMPING)
        program = replace(program, weights=shelf.onto(program.weights))
    outcome = run_passes(program, pipeline.palettise(formats))
    if how == "calibrated":
        return outcome
    made = {name: 0 for name in outcome.program.weight_names().values() if name.endswith((INDICES, TABLES))}
    return Outcome(replace(outcome.program, weights=settle(outcome.program.weights, made, folder)), outcome.steps)


def _calibrated(
    program: Program,
    formats: Mapping[str, Format],
    batches: Sequence[Mapping[str, Tensor]],
    folder: Path,
    progress: Progress,
    damping: float,
) -> Shelf:
    shelf = Shelf(folder)
    every = max(1, len(formats) // 10)
    for number, (name, made) in enumerate(calibrate(program, batches, formats, damping=damping)):
        if number % every == 0:
            progress.stage("quantise", f"calibrated, {number} of {len(formats)} weights: {name}")
        _put(shelf, name, made, formats[name].bits)
    return shelf


def _put(shelf: Shelf, name: str, made: Made, bits: int) -> None:
    if isinstance(made, Palette):
        shelf.put(name + INDICES, made.indices)
        shelf.put(name + TABLES, made.tables)
        return
    shelf.put(name + VALUES, made.values, bits)
    shelf.put(name + SCALES, made.scales)
    if made.zero_points is not None:
        shelf.put(name + ZEROS, made.zero_points, bits)
