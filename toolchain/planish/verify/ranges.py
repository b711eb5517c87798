"""The activation-range audit: how large every value becomes when the reference runs.

Language models have massive activations at their first token (Sun et al. 2024, arXiv:2402.17762). Float16 holds 65504:
a residual of 22,552 fits, the mean of its squares does not. Targets that compute in float16 read the result.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, fx

from planish_passes.interpret import interpret
from planish_passes.program import Program
from planish_passes.ranges import Range


def audit(program: Program, inputs: Mapping[str, Tensor]) -> dict[str, Range]:
    """Run a program in float32 and measure every floating value on the way.

    Args:
        program: the program that will be annotated (`planish_passes.ranges.AnnotateRanges`).
        inputs: user inputs by port name. What these do not reach is not seen: give ordinary text, from its start.

    Returns:
        Node name -> range, for values with at least one element; a value that is not finite has an infinite range.
    """
    found: dict[str, Range] = {}

    def measure(node: fx.Node, value: Tensor) -> None:
        if value.is_floating_point() and value.numel():
            wide = value.detach().float()
            rows = wide.reshape(1) if wide.dim() == 0 else wide
            peak, square = float(rows.abs().max()), float(rows.square().mean(-1).max())
            finite = peak == peak and square == square
            found[node.name] = Range(peak, square) if finite else Range(float("inf"), float("inf"))

    interpret(program, inputs, tap=measure)
    return found
