"""Recipe `keep`: the blocks that a GGUF file has quantised become the program's integers, as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from planish.checkpoint import Blocks, GgufFile
from planish.checkpoint.blocks import FORMATS, WITH_MINIMA, unpack
from planish.request import Request
from planish.source import Source
from planish.verdict import Failed, Metric, Passed, Verdict
from planish_passes import pipeline
from planish_passes.errors import PlanishError
from planish_passes.infra import Outcome, run_passes
from planish_passes.program import Program
from planish_passes.quantise import MINIMA, SCALES, VALUES, Quantise
from planish_passes.weights import QuantizedTensor, TensorSpec, WeightFormat, WeightStore
from planish_targets.contract import Evidence

RAW = ".blocks"  # a weight's own bytes, in the program's store
LAST_BITS = 2.0  # roundings of float32 that may lie between two ways to write d * q + m
_ROUNDING = 2.0**-24


def demand(request: Request, source: Source) -> None:
    """Refuse what has no blocks, and options that would change them.

    Raises:
        PlanishError: the model is no GGUF file, or the request asks for another rounding.
    """
    if not isinstance(source.checkpoint, GgufFile):
        raise PlanishError(
            "recipe keep needs a model that is quantised already: a GGUF file",
            f"--recipe keep, {source.location}",
            "give the path of a .gguf file, or quantise here: --recipe int4 or int8",
        )
    asked: dict[str, object] = {"--group": request.group, "--symmetric": request.symmetric}
    asked |= {"--bits": request.bits, "--max-size": request.max_size}
    wrong = [flag for flag, value in asked.items() if value is not None]
    wrong += ["--rounding"] if request.rounding != "auto" else []
    if wrong:
        raise PlanishError(
            "recipe keep takes integers and scales as the file has them", ", ".join(wrong), "leave it out"
        )


def stored_formats(source: Source) -> Mapping[str, tuple[WeightFormat, int]]:
    """GGUF name -> format and numbers per group of every tensor whose type can be kept, for estimates."""
    file = source.checkpoint
    assert isinstance(file, GgufFile)
    kinds = {name: file.kind(name) for name in list(file.keys())}
    return {name: (FORMATS[kind], 1 + (kind in WITH_MINIMA)) for name, kind in kinds.items() if kind in FORMATS}


def keep(program: Program, stored: Callable[[str], Blocks | str]) -> Outcome:
    """The program with the file's integers; what stays floating point is listed with its reason.

    Args:
        stored: weight name -> its blocks, or why they cannot be kept (`Loaded.stored`).

    Raises:
        PlanishError: none can be kept.
    """
    formats: dict[str, WeightFormat] = {}
    reasons: dict[str, str] = {}
    weights = program.weights
    for name in Quantise().plan(program).weights:
        found = stored(name)
        if isinstance(found, str):
            reasons[name] = f"{name}: {found}"
        else:
            formats[name] = found.format
            weights = _with_parts(weights, name, found)
    if not formats:
        raise PlanishError(
            "no weight of this file is of a type that can be kept",
            next(iter(reasons.values()), "the model has no linear and no embedding weights"),
            f"types that can: {', '.join(FORMATS)}; or quantise here: --recipe int4 or int8",
        )
    return run_passes(replace(program, weights=weights), pipeline.keep(formats, reasons))


def check_kept(program: Program, original: WeightStore) -> Verdict:
    """Every quantised weight, written out, is the checkpoint's own value; other weights are not looked at.

    gguf's own code unpacks the values that it is compared with. Where a type has no minima they are equal; where it
    has, d * q + m may be rounded in another place.

    Args:
        original: weights before quantisation.
    """
    worst, at, count = 0.0, "", 0
    for name in original:
        if name + VALUES not in program.weights:
            continue
        count += 1
        for start, stop in program.weights.spans(name + VALUES):
            off = _last_bits(_written_out(program.weights, name, start, stop), original.rows(name, start, stop))
            if not off <= worst:
                worst, at = off, name
    metrics = (Metric("last_bits", worst, LAST_BITS, case=at), Metric("kept_tensors", float(count)))
    if count and all(m.ok for m in metrics):
        return Passed("weights", Evidence.EXECUTED, metrics, "torch CPU")
    reason = f"weight {at!r} is not what the file holds" if count else "no weight of the file could be kept"
    return Failed("weights", Evidence.EXECUTED, reason, metrics, "torch CPU")


def _with_parts(weights: WeightStore, name: str, blocks: Blocks) -> WeightStore:
    rows, columns = weights.spec(name).shape
    groups = columns // blocks.format.group
    specs = {
        name + VALUES: TensorSpec((rows, columns), torch.int8),
        name + SCALES: TensorSpec((rows, groups), torch.float32),
    }
    if blocks.kind in WITH_MINIMA:
        specs[name + MINIMA] = TensorSpec((rows, groups), torch.float32)
    raw = name + RAW
    weights = weights.with_lazy(raw, blocks.spec, lambda: blocks.rows(0, rows), blocks.sources, blocks.rows)
    return weights.derive_together(specs, (raw,), partial(unpack, kind=blocks.kind), by_rows=True)


def _written_out(weights: WeightStore, name: str, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
    values, scales = weights.rows(name + VALUES, start, stop), weights.rows(name + SCALES, start, stop)
    minima = weights.rows(name + MINIMA, start, stop) if name + MINIMA in weights else None
    return QuantizedTensor(values, scales, None, WeightFormat(), minima).dequantize(), minima


def _last_bits(found: tuple[Tensor, Tensor | None], wanted: Tensor) -> float:
    """Largest difference, in roundings of float32 of the largest number on the way; infinite where none is due."""
    real, minima = found
    error = (real - wanted.to(torch.float32)).abs()
    if minima is None:
        return float("inf") if bool(error.any()) or not bool(torch.isfinite(error).all()) else 0.0
    rounding = minima.abs().repeat_interleave(real.shape[1] // minima.shape[1], dim=1).maximum(real.abs()) * _ROUNDING
    return float(torch.where(error > 0, error / rounding, error).max())
