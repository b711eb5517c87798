"""MIL operations, one function each, by kind."""

from planish_targets.coreml.mil.ops import (  # noqa: F401  (imported for their registrations)
    activation,
    arrange,
    compress,
    create,
    elementwise,
    indexing,
    linear,
    normalize,
    order,
    pool,
    reduction,
    resize,
    slicing,
)
from planish_targets.coreml.mil.ops.registry import MOVES, OPS, OpError

__all__ = ["MOVES", "OPS", "OpError"]
