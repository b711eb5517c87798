"""Which weights deserve more bits: how much a rounded weight changes its outputs, and the best use of a size budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from planish_passes.errors import PlanishError
from planish_passes.ops import dequantize
from planish_passes.rounding import BLOCK, Rounded
from planish_passes.weights import WeightFormat


@dataclass(frozen=True)
class Choice:
    """One way to store a weight.

    Args:
        format: integers and scales.
        nbytes: what the weight takes in the artifact.
        error: what it costs in accuracy; must add up over weights (a KL divergence, a squared error).
    """

    format: WeightFormat
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


def output_error(weight: Tensor, rounded: Rounded, moment: Tensor) -> float:
    """Mean squared change of a linear's outputs, as a share of their mean square.

    Args:
        weight: [N, K].
        rounded: the same weight as integers.
        moment: [K, K], second moment of the linear's inputs (sum or mean of x^T x).

    Returns:
        0 for an exact weight; 0 also where the outputs are zero throughout.
    """
    changed = total = 0.0
    step = max(1, BLOCK // weight.shape[1])
    for start in range(0, len(weight), step):
        rows = weight[start : start + step].to(torch.float32)
        zeros = None if rounded.zero_points is None else rounded.zero_points[start : start + step]
        values, scales = rounded.values[start : start + step], rounded.scales[start : start + step]
        difference = dequantize(values, scales, zeros, torch.float32) - rows
        changed += float(torch.linalg.vecdot(difference @ moment, difference).sum())
        total += float(torch.linalg.vecdot(rows @ moment, rows).sum())
    return max(changed, 0.0) / total if total > 0 else 0.0
