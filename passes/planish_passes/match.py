"""Small questions that patterns ask of a graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from planish_passes.program import op_name

_CASTS = ("aten.to", "aten._to_copy")


def is_op(node: Any, *names: str) -> bool:
    """True for a call of one of these operators."""
    return isinstance(node, fx.Node) and node.op == "call_function" and op_name(node) in names


def sole(node: fx.Node) -> Any:
    """The only user of a node, else None."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def other(node: fx.Node, argument: fx.Node) -> Any:
    """The other operand of a binary operator."""
    a, b = node.args[:2]
    return b if a is argument else a


def through_casts(node: Any) -> Any:
    """What stands before casts from one floating type to another of at least its precision."""
    while is_op(node, *_CASTS) and isinstance(node.args[0], fx.Node):
        given, made = node.args[0].meta["val"].dtype, node.meta["val"].dtype
        if not (given.is_floating_point and made.is_floating_point and made.itemsize >= given.itemsize):
            break
        node = node.args[0]
    return node


def number(value: Any) -> float | None:
    """A Python number, else None."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def shape_of(node: fx.Node) -> tuple[Any, ...]:
    """Its sizes; symbolic ones as they are."""
    value = node.meta["val"]
    assert isinstance(value, torch.Tensor)
    return tuple(value.shape)
