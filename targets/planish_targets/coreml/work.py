"""How much arithmetic an operation is, from the shapes that a package declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from planish_targets.coreml import mil

Shape = tuple[int | None, ...]
_FREE = frozenset(
    {"const", "reshape", "transpose", "expand_dims", "squeeze", "identity", "slice_by_index", "slice_by_size", "split"}
    | {"concat", "gather", "read_state", "write_state", "coreml_update_state", "slice_update", "cast", "tile", "stack"}
)


def work(
    operations: Sequence[mil.MilOperation],
    constants: Sequence[mil.MilOperation],
    elsewhere: set[str],
    flexible: bool,
) -> tuple[int, int]:
    """Floating-point operations of a function, and those among them that are in none of the named operations.

    Args:
        operations, constants: of one function.
        elsewhere: results (or constants that are used) of operations that are counted in the first number only.
        flexible: with dimensions that are not fixed nothing is left; they count as 1.
    """
    weights = {o.name: o.shape or () for op in constants for o in op.outputs}
    shapes = weights | {o.name: o.shape or () for op in operations for o in op.outputs}
    total = left = 0
    for operation in operations:
        flops = _flops(operation, shapes, weights)
        total += flops
        concerned = {o.name for o in operation.outputs} | (set(operation.inputs) & set(weights))
        left += 0 if flexible or concerned & elsewhere else flops
    return total, left


def _flops(operation: mil.MilOperation, shapes: Mapping[str, Shape], weights: Mapping[str, Shape]) -> int:
    size = _count(operation.outputs[0].shape or ()) if operation.outputs else 0
    if operation.type in ("linear", "conv"):  # weight [N, K] or [N, K, height, width]
        return 2 * size * max((_count(weights[n][1:]) for n in operation.inputs if n in weights), default=1)
    given = [shapes[name] for name in operation.inputs if name in shapes]
    if operation.type == "matmul":  # x [..., M, K] and y [..., K, N], either turned: (M K) (K N) / (M N) = K^2
        # Inputs come in the order of their parameters: transpose_x, transpose_y, x, y.
        x, y = (_count(s[-2:]) for s in given[-2:]) if len(given) > 1 else (1, 1)
        return 2 * size * max(1, round((x * y / max(_count((operation.outputs[0].shape or ())[-2:]), 1)) ** 0.5))
    return 0 if operation.type in _FREE else size


def _count(shape: Shape) -> int:
    return prod(d or 1 for d in shape)
