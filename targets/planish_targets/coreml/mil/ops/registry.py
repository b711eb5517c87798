"""The registry of MIL operations.

An operation is one function of torch tensors whose parameters have MIL's names and defaults.
Results may have any type and are converted to the declared one by the caller; floats below 32 bits
arrive as fp32, except at operations that only move elements.
Source of every meaning: the docstrings in coremltools/converters/mil/mil/ops/defs (iOS15 to iOS18).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

OpFunction = Callable[..., Tensor | tuple[Tensor, ...]]
AnyOp = TypeVar("AnyOp", bound=OpFunction)

OPS: dict[str, OpFunction] = {}
# Operations that only move elements: their operands are not widened, so a half-precision embedding
# table is not copied to fp32 for the sake of a few rows.
MOVES: set[str] = set()


class OpError(Exception):
    """An operation cannot be computed with these operands."""


def op(*names: str, moves: bool = False) -> Callable[[AnyOp], AnyOp]:
    """Register a function for the given MIL operation names."""

    def register(function: AnyOp) -> AnyOp:
        for name in names:
            if name in OPS:
                raise ValueError(f"MIL op {name} is registered twice")
            OPS[name] = function
            if moves:
                MOVES.add(name)
        return function

    return register


def ints(value: Tensor | None, default: list[int] | None = None) -> list[int]:
    """A 1-D integer operand as a list; `default` when it is absent."""
    if value is None:
        return list(default or [])
    return [int(item) for item in value.reshape(-1).tolist()]


def flags(value: Tensor | None, rank: int) -> list[bool]:
    """A mask operand as a list of `rank` booleans, all False when it is absent."""
    if value is None:
        return [False] * rank
    return [bool(item) for item in value.reshape(-1).tolist()]


def number(value: Tensor | float | None, default: Any = None) -> Any:
    """A scalar operand as a Python number; `default` when it is absent."""
    if value is None:
        return default
    return value.item() if isinstance(value, Tensor) else value
