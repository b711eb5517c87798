"""Reductions over axes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from planish_targets.coreml.mil.ops.registry import ints, number, op


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = torch.prod(x, dim=axis, keepdim=keep)
    return x


REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "reduce_sum": lambda x, axes, keep: torch.sum(x, dim=axes, keepdim=keep),
    "reduce_mean": lambda x, axes, keep: torch.mean(x.to(torch.float32), dim=axes, keepdim=keep),
    "reduce_max": lambda x, axes, keep: torch.amax(x, dim=axes, keepdim=keep),
    "reduce_min": lambda x, axes, keep: torch.amin(x, dim=axes, keepdim=keep),
    "reduce_prod": _product,
    "reduce_l1_norm": lambda x, axes, keep: torch.sum(x.abs(), dim=axes, keepdim=keep),
    "reduce_l2_norm": lambda x, axes, keep: torch.sqrt(torch.sum(x * x, dim=axes, keepdim=keep)),
    "reduce_log_sum": lambda x, axes, keep: torch.log(torch.sum(x, dim=axes, keepdim=keep)),
    "reduce_log_sum_exp": lambda x, axes, keep: torch.logsumexp(x, dim=axes, keepdim=keep),
    "reduce_sum_square": lambda x, axes, keep: torch.sum(x * x, dim=axes, keepdim=keep),
}


def _register(name: str, function: Callable[[Tensor, list[int], bool], Tensor]) -> None:
    @op(name)
    def reduce(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | bool = False) -> Tensor:
        return function(x, ints(axes, list(range(x.dim()))), bool(keep_dims)) if x.dim() else function(x, [], False)


for _name, _function in REDUCTIONS.items():
    _register(_name, _function)


@op("reduce_argmax")
def reduce_argmax(
    x: Tensor, axis: Tensor | int = -1, keep_dims: Tensor | bool = False, output_dtype: str = "int32"
) -> Tensor:
    """Index of the largest element along an axis, of the first one on a tie."""
    return torch.argmax(x, dim=int(number(axis)), keepdim=bool(keep_dims))


@op("reduce_argmin")
def reduce_argmin(
    x: Tensor, axis: Tensor | int = -1, keep_dims: Tensor | bool = False, output_dtype: str = "int32"
) -> Tensor:
    """Index of the smallest element along an axis, of the first one on a tie."""
    return torch.argmin(x, dim=int(number(axis)), keepdim=bool(keep_dims))
