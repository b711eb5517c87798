"""Quantise the shared program, once: choose the rounding, make the integers, keep them on disk for every target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from planish.compiled import Progress
from planish.recipes import RecipeSpec
from planish.request import Request
from planish.source import Source
from planish.tasks import Task
from planish.tasks.calibration import calibration_tokens
from planish.tasks.text import load_tokenizer
from planish.verify.decoding import empty_cache, feed
from planish_passes import pipeline
from planish_passes.calibrate import calibrate
from planish_passes.errors import PlanishError
from planish_passes.infra import Outcome, run_passes
from planish_passes.palette import INDICES, TABLES, sensitive
from planish_passes.program import Program
from planish_passes.quantise import SCALES, VALUES, ZEROS, Quantise, Rounder
from planish_passes.rounding import Rounded, round_to_nearest, search
from planish_passes.settle import Shelf, settle, settle_quantised
from planish_passes.weights import WeightFormat

Rounding = Literal["nearest", "search", "calibrated"]
CALIBRATED_UP_TO = 1_000_000_000  # weights; above, calibration takes longer than people wait for unasked
CHECKED_UP_TO = 2_000_000_000  # weights; the original runs in float32, four bytes each
TOKENS, LENGTH = 8192, 512  # of calibration


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


def checked(request: Request, weights: int) -> bool:
    """Whether artifacts are checked: as asked for, else up to a size whose original runs in ordinary memory."""
    return weights <= CHECKED_UP_TO if request.verify is None else request.verify


def quantise(
    program: Program,
    format: WeightFormat,
    how: Rounding,
    source: Source,
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
        shelf = _calibrated(program, {name: chosen for name, (chosen, _) in plan.items()}, source, folder, progress)
        program = replace(program, weights=shelf.onto(program.weights))
    rounder: Mapping[Rounding, Rounder] = {"nearest": round_to_nearest, "search": search}
    outcome = run_passes(program, pipeline.quantise(format, every, rounder.get(how)))
    if how == "calibrated":
        return outcome
    return Outcome(settle_quantised(outcome.program, folder), outcome.steps)


def palettise(program: Program, group: int, folder: Path) -> Outcome:
    """Linears as palettes, as far as they bear it; indices and tables lie in `folder` from then on."""
    outcome = run_passes(program, pipeline.palettise(group, sensitive(program)))
    program = outcome.program
    made = {name: 0 for name in program.weight_names().values() if name.endswith((INDICES, TABLES))}
    return Outcome(replace(program, weights=settle(program.weights, made, folder)), outcome.steps)


def _calibrated(
    program: Program, formats: Mapping[str, WeightFormat], source: Source, folder: Path, progress: Progress
) -> Shelf:
    longest = program.axes["sequence"][1]
    tokens = calibration_tokens(
        load_tokenizer(source.tokenizer_files), int(source.config.vocab_size), TOKENS, min(LENGTH, longest)
    )
    batches: list[Mapping[str, Tensor]] = [feed(program, t, empty_cache(program)) for t in tokens]
    shelf = Shelf(folder)
    every = max(1, len(formats) // 10)
    for number, (name, rounded) in enumerate(calibrate(program, batches, formats)):
        if number % every == 0:
            progress.stage("quantise", f"calibrated, {number} of {len(formats)} weights: {name}")
        _put(shelf, name, rounded, formats[name].bits)
    return shelf


def _put(shelf: Shelf, name: str, rounded: Rounded, bits: int) -> None:
    shelf.put(name + VALUES, rounded.values, bits)
    shelf.put(name + SCALES, rounded.scales)
    if rounded.zero_points is not None:
        shelf.put(name + ZEROS, rounded.zero_points, bits)
