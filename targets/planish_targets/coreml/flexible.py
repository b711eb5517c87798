"""Shapes that a package takes: a range of lengths, or some lengths that are named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planish_passes.errors import PlanishError
from planish_passes.program import Program
from planish_targets.coreml.emit.naming import safe_name
from planish_targets.coreml.sdk import Sdk

DEFAULT = 128  # the length that a package states for tools that show one, where it takes it


OPEN = frozenset({"sequence"})  # dimensions that may stay open


def demand(program: Program, lengths: Sequence[int]) -> None:
    """Refuse open dimensions that no package has, and lengths that the model does not take.

    Raises:
        PlanishError: names them.
    """
    if other := sorted(set(program.axes) - OPEN):
        raise PlanishError(
            f"dimensions {', '.join(other)} are dynamic",
            f"program {program.name!r}",
            "fix them: pass sizes to for_target",
        )
    low, high = program.axes.get("sequence", (0, 0))
    strange = [n for n in lengths if not low <= n <= high]
    if strange and program.axes:
        raise PlanishError(
            f"sequence = {strange[0]} is outside what the model takes ({low} to {high})",
            f"program {program.name!r}",
            "choose another --sequence-length",
        )


def flexible(program: Program, lengths: Sequence[int], kit: Sdk) -> list[Any]:
    """coremltools' descriptions of the inputs; [] when all shapes are fixed.

    Args:
        program: with no more than one open dimension.
        lengths: sizes of it that the package takes; (): all that the program takes.
    """
    if not program.axes:
        return []
    ((axis, (low, high)),) = program.axes.items()
    whole = kit.ct.RangeDim(low, high, default=min(max(DEFAULT, low), high))

    def shaped(shape: Sequence[int | str]) -> Any:
        if not lengths:
            return kit.ct.Shape(shape=[whole if d == axis else d for d in shape])
        named = [[n if d == axis else d for d in shape] for n in lengths]
        return kit.ct.EnumeratedShapes(shapes=named, default=named[0])

    return [
        kit.ct.TensorType(name=safe_name(p.name), shape=shaped(p.shape))
        if axis in p.shape
        else kit.ct.TensorType(name=safe_name(p.name), shape=p.shape)
        for p in program.inputs
    ]
