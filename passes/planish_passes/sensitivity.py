"""Which weights deserve more bits: how much a rounded weight changes its outputs, and the best use of a size budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from planish_passes.errors import PlanishError
from planish_passes.interpret import interpret
from planish_passes.ops import dequantize
from planish_passes.palette import Palette, PaletteFormat
from planish_passes.program import Program
from planish_passes.rounding import BLOCK, Rounded
from planish_passes.weights import WeightFormat, WeightStore

Format = TypeVar("Format", WeightFormat, PaletteFormat)


@dataclass(frozen=True)
class Choice:
    """One way to store a weight.

    Args:
        format: integers and scales, or indices and tables.
        nbytes: what the weight takes in the artifact.
        error: what it costs in accuracy; must add up over weights (a KL divergence, a squared error).
    """

    format: WeightFormat | PaletteFormat
    nbytes: int
    error: float


def allocate(choices: Mapping[str, Sequence[Choice]], budget: int) -> dict[str, Choice]:
    """Give each weight one of its choices, so that the sum of errors is small and the sum of bytes within the budget.

    Every weight starts with its smallest choice; then, as long as one fits, the change that saves most error per byte
    is made. That is the optimum for the bytes it ends up with, and the unused rest is less than any change that helps.

    Args:
        choices: weight name -> at least one choice, in any order.
        budget: bytes for all weights together.

    Raises:
        PlanishError: even the smallest choices do not fit.
    """
    chosen = {name: min(options, key=lambda c: (c.nbytes, c.error)) for name, options in choices.items()}
    left = budget - sum(c.nbytes for c in chosen.values())
    if left < 0:
        raise PlanishError(
            f"the weights need at least {budget - left} bytes, {budget} are allowed",
            "the size budget",
            "raise the budget, allow fewer bits, or choose a larger group",
        )
    while True:
        gains = [
            (_gain(chosen[name], option), name, option)
            for name, options in choices.items()
            for option in options
            if option.error < chosen[name].error and option.nbytes - chosen[name].nbytes <= left
        ]
        if not gains:
            return chosen
        _, name, option = max(gains, key=lambda g: g[0])
        left -= option.nbytes - chosen[name].nbytes
        chosen[name] = option


def _gain(old: Choice, new: Choice) -> float:
    """Error saved per byte; free improvements come first."""
    grown = new.nbytes - old.nbytes
    return (old.error - new.error) / grown if grown > 0 else float("inf")


def measured(
    program: Program,
    units: Mapping[str, Mapping[str, Format]],
    rounder: Callable[[Tensor, Format], Rounded | Palette],
    feeds: Sequence[Mapping[str, Tensor]],
    distance: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], float],
) -> Iterator[tuple[str, float]]:
    """How far the program's outputs move when one unit of weights alone is rounded.

    Args:
        program: floating point.
        units: name of a unit -> its weights and their formats; they are rounded together.
        rounder: makes the integers, or the palette.
        feeds: inputs to look at.
        distance: (outputs of the rounded program, outputs of `program`) -> at least 0; 0 when they are equal.
    """
    truth = [interpret(program, feed) for feed in feeds]
    for unit, weights in units.items():
        store = program.weights
        for name, format in weights.items():
            store = store.with_tensor(name, _rounded(store.read(name), format, rounder))
        changed = replace(program, weights=store)
        moved = sum(distance(interpret(changed, f), t) for f, t in zip(feeds, truth, strict=True))
        yield unit, max(moved / max(len(feeds), 1), 0.0)


def estimated(
    weights: WeightStore, unit: Mapping[str, Format], rounder: Callable[[Tensor, Format], Rounded | Palette]
) -> float:
    """Squared rounding error of a unit as a share of its weights' own square; reads row block by row block.

    For models whose outputs are too dear to look at (`measured`).
    """
    error = 0.0
    for name, format in unit.items():
        lost = total = 0.0
        for block in weights.blocks(name):
            for rows in block.split(max(1, BLOCK // block.shape[1])):
                exact = rows.to(torch.float32)
                lost += float((_rounded(exact, format, rounder) - exact).square().sum())
                total += float(exact.square().sum())
        error += lost / total if total else 0.0
    return error


def _rounded(weight: Tensor, format: Format, rounder: Callable[[Tensor, Format], Rounded | Palette]) -> Tensor:
    made = rounder(weight, format)
    dense = made.dequantize() if isinstance(made, Palette) else dequantize(*made, torch.float32)
    return dense.to(weight.dtype)
