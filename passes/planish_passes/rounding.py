"""Weights to integers without calibration data: round to nearest, and a search for the grid with the least error.

A weight [N, K] is cut into groups along K; each group has a scale and, when the format is asymmetric, a zero point:
w = (value - zero point) * scale. Values and zero points are signed integers in `format.range` (4 bits: -8..7; a runtime
that stores unsigned codes adds 8 to both), scales are float16 values held as float32, so that every target stores the
same numbers. Scales of groups are bfloat16 values as well (8 significant bits): XNNPACK stores them so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from planish_passes.errors import PlanishError
from planish_passes.weights import WeightFormat

# Elements per block: the temporaries of a block stay in the processor's cache. The result does not depend on it.
BLOCK = 1 << 17
# Widths that the search tries, as shares of the group's own width. Below 1 the largest values are clipped; 15/14, 15/13
# ... find the grid of a 4-bit group that does not reach both ends of it.
SHARES = tuple(15 / n for n in (20, 19, 18, 17.5, 17, 16.5, 16, 15.5, 15, 14.5, 14, 13))
SMALLEST, LARGEST = 2.0**-14, 65504.0  # normal float16 numbers; runtimes flush what lies below


class Rounded(NamedTuple):
    """A weight as integers.

    Args:
        values: int8 [N, K].
        scales: float32 [N, G], positive, every one a normal float16 value.
        zero_points: int8 [N, G], or None when the format is symmetric.
    """

    values: Tensor
    scales: Tensor
    zero_points: Tensor | None


Grid = tuple[Tensor, Tensor]
"""Scales and zero points (both float32, whole numbers in the latter), one per group."""
Fit = Callable[[Tensor, WeightFormat, Tensor | None], Grid]
"""(members of groups [g, ...], format, importance broadcastable to the members or None) -> grid [...]."""


def round_to_nearest(weight: Tensor, format: WeightFormat) -> Rounded:
    """The grid that just holds the smallest and the largest value of each group, and the nearest integers.

    Args:
        weight: any float dtype, [N, K].
        format: group divides K (0 = one group per row).

    Raises:
        PlanishError: the group does not divide K, or the weight holds NaN or infinite values.
    """
    return _by_rows(weight, format, full_range, None)


def search(weight: Tensor, format: WeightFormat, importance: Tensor | None = None) -> Rounded:
    """The grid with the least squared error among clipped and shifted ones, then the least-squares scale.

    The full range is one of the candidates, so that the error is never above that of `round_to_nearest`.

    Args:
        weight: any float dtype, [N, K].
        format: group divides K (0 = one group per row).
        importance: non-negative weight of the error of each input feature, [K]; all alike when None.

    Raises:
        PlanishError: as `round_to_nearest`.
    """
    return _by_rows(weight, format, least_error, importance)


def encode(members: Tensor, grid: Grid, format: WeightFormat) -> Tensor:
    """The nearest integers (ties to even) of the members [g, ...] of groups [...], as float32."""
    scales, zeros = grid
    low, high = format.range
    return torch.round(members / scales).add_(zeros).clamp_(low, high)


def full_range(members: Tensor, format: WeightFormat, importance: Tensor | None = None) -> Grid:
    """The smallest grid that clips nothing; zero stays representable."""
    least, most = _ends(members)
    low, high = format.range
    if format.symmetric:
        scales = _half_up(torch.maximum(-least, most) / high, format)
        return scales, torch.zeros_like(scales)
    scales = _half_up((most - least) / (high - low), format)
    return scales, torch.round(low - least / scales).clamp_(low, high)


def least_error(
    members: Tensor, format: WeightFormat, importance: Tensor | None = None, shares: Sequence[float] = SHARES
) -> Grid:
    """The best grid that the search finds for each group; see `search`.

    Args:
        members: [g, ...], one row per member, so that groups lie side by side in memory.
        importance: [g, ...], broadcastable.
        shares: widths that are tried, as shares of the group's own.
    """
    best = _Best(members, format, importance)
    best.consider(*full_range(members, format))
    least, most = _ends(members)
    low, high = format.range
    width = 2 * torch.maximum(-least, most) if format.symmetric else most - least
    for share in shares:
        scales = _half(width * (share / (high - low)), format)
        if format.symmetric:
            best.consider(scales, torch.zeros_like(scales))
        else:  # the two integers next to the zero point that clips both ends alike
            below = torch.floor((low + high) / 2 - (least + most) / (2 * scales))
            best.consider(scales, below.clamp(low, high), (below + 1).clamp(low, high))
    for _ in range(2):
        best.consider(best.least_squares(), best.zeros)
    return best.scales, best.zeros


class _Best:
    """The best grid so far, per group."""

    def __init__(self, members: Tensor, format: WeightFormat, importance: Tensor | None) -> None:
        self.members, self.format, self.importance = members, format, importance
        self.errors = members.new_full(members.shape[1:], float("inf"))
        self.scales, self.zeros = torch.ones_like(self.errors), torch.zeros_like(self.errors)

    def consider(self, scales: Tensor, *zeros: Tensor) -> None:
        """Keep scales and one of the zero points where they are better."""
        exact = self.members / scales
        nearest = torch.round(exact)
        low, high = self.format.range
        for zero in zeros:
            error = torch.clamp(nearest, low - zero, high - zero).sub_(exact)
            errors = self._sum(error.square_()).mul_(scales * scales)
            better = errors < self.errors
            self.errors = torch.where(better, errors, self.errors)
            self.scales, self.zeros = (
                torch.where(better, n, o) for n, o in ((scales, self.scales), (zero, self.zeros))
            )

    def least_squares(self) -> Tensor:
        """The scales that fit best to the integers of the best grid."""
        codes = encode(self.members, (self.scales, self.zeros), self.format).sub_(self.zeros)
        products, squares = self._sum(codes * self.members), self._sum(codes.square_())
        fitting = torch.where(squares > 0, products / squares.clamp(min=SMALLEST), self.scales)
        return _half(fitting, self.format)

    def _sum(self, terms: Tensor) -> Tensor:
        """Of all members, weighted, in an order that depends on nothing but their number."""
        if self.importance is not None:
            terms.mul_(self.importance)
        while len(terms) > 1:
            half = len(terms) // 2
            pairs = terms[:half] + terms[half : 2 * half]
            if len(terms) % 2:
                pairs[0] += terms[-1]
            terms = pairs
        return terms[0]


def cut(weight: Tensor, format: WeightFormat) -> Tensor:
    """float32 [N, G, g]: the groups of a weight [N, K].

    Raises:
        PlanishError: see `round_to_nearest`.
    """
    rows, columns = weight.shape
    size = format.group or columns
    if columns % size:
        raise PlanishError(
            f"{columns} input features do not divide into groups of {size}",
            f"a weight of shape [{rows}, {columns}]",
            "choose a group that divides the input features, or 0 for one group per row",
        )
    return weight.to(torch.float32).view(rows, columns // size, size)


def _by_rows(weight: Tensor, format: WeightFormat, fit: Fit, importance: Tensor | None) -> Rounded:
    rows, columns = weight.shape
    groups = columns // format.group if format.group else 1
    values = torch.empty(rows, columns, dtype=torch.int8)
    scales, zeros = torch.empty(rows, groups), torch.empty(rows, groups, dtype=torch.int8)
    weighting = None if importance is None else importance.to(torch.float32).view(groups, -1).t()[:, None]
    step = max(1, BLOCK // columns)
    for start in range(0, rows, step):
        members = cut(weight[start : start + step], format).permute(2, 0, 1).contiguous()
        grid = fit(members, format, weighting)
        values[start : start + step] = encode(members, grid, format).permute(1, 2, 0).flatten(1)
        scales[start : start + step], zeros[start : start + step] = grid
    return Rounded(values, scales, None if format.symmetric else zeros)


def _ends(members: Tensor) -> tuple[Tensor, Tensor]:
    least, most = members.aminmax(dim=0)
    if not bool((torch.isfinite(least) & torch.isfinite(most)).all()):
        raise PlanishError(
            "a weight holds NaN or infinite values", "the weight being quantised", "repair the checkpoint"
        )
    return least.clamp(max=0), most.clamp(min=0)


def _half(exact: Tensor, format: WeightFormat) -> Tensor:
    dtype, largest = _scale_type(format)
    return exact.clamp(SMALLEST, largest).to(dtype).to(torch.float32)


def _half_up(exact: Tensor, format: WeightFormat) -> Tensor:
    """The next value that is not smaller: nothing is clipped by the rounding of the scale."""
    dtype, largest = _scale_type(format)
    half = exact.clamp(SMALLEST, largest).to(dtype)
    up = torch.nextafter(half, torch.full_like(half, largest))
    return torch.where(half.to(torch.float32) < exact, up, half).to(torch.float32)


def _scale_type(format: WeightFormat) -> tuple[torch.dtype, float]:
    """What scales are rounded to, and the largest that float16 holds too."""
    return (torch.bfloat16, 65280.0) if format.group else (torch.float16, LARGEST)
