"""Calibrated rounding: each column's rounding error is made up for by the columns that are still to come.

"GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", Frantar et al. 2023, with two
changes: the grid of a group is searched for when the group is reached, and that search weighs errors by the mean square
of each input, which matters more than anything else where a few channels carry most of the activation. Where the inputs
have drifted from those of the float model, because earlier weights are rounded already, the weight is first moved
towards the one that gives the float model's outputs from the drifted inputs ("GPTAQ", Li et al. 2025, has that aim).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, reduce
from typing import NamedTuple

import torch
from torch import Tensor

from planish_passes.errors import PlanishError
from planish_passes.rounding import SHARES, Grid, Rounded, cut, encode, least_error
from planish_passes.weights import WeightFormat

BLOCK = 1 << 21  # elements of a block of rows
WIDTH = 128  # columns whose errors are passed on together, where one group is the whole row
DOUBLE_UP_TO = 2048  # features: up to here factorisations are float64, beyond that their memory would be too much
COARSE = (15 / 18, 15 / 16, 15 / 14.5)  # widths tried for up to 4 bits; a finer search makes nothing better there
CACHED = 1 << 16  # elements whose grids are searched at a time
SMALL = 128  # features; triangles up to here are inverted at once
LEAST_DAMPING = 1e-6  # the first share that is tried after no damping at all


class Curvature(NamedTuple):
    """What rounding needs to know about the inputs of a linear.

    Args:
        factor: upper triangular [K, K], factor^T @ factor = inverse of the damped second moment.
        importance: [K], mean square of each input feature, damped.
        drift: see `curvature`.
    """

    factor: Tensor
    importance: Tensor
    drift: Tensor | None = None

    def moving(self, rows: int) -> Callable[[Tensor], Tensor]:
        """What moves a weight to where it makes up for the drift: (float32 [n, K], some of its `rows`) -> [n, K]."""
        if self.drift is None:
            return lambda weight: weight
        steps: tuple[Tensor, ...] = (self.drift, self.factor.t(), self.factor)
        if rows > len(self.factor):  # one product per block of rows is less work then
            steps = (reduce(torch.matmul, steps),)
        return lambda weight: weight + reduce(torch.matmul, steps, weight)


def curvature(moment: Tensor, damping: float = 0.01, drift: Tensor | None = None, shrinkage: float = 0.0) -> Curvature:
    """Prepare a second moment for `gptq`; linears that read the same input share the result.

    Args:
        moment: [K, K], sum or mean of x^T x over calibration tokens. Features that were always zero are allowed.
        damping: share of the mean diagonal that is added to the diagonal; raised tenfold, up to 1, while the matrix
            cannot be factorised.
        drift: [K, K], d^T x in the units of `moment`, where d is what the float model's inputs have more than x, times
            the share of the drift that weights shall make up for. None: no drift.
        shrinkage: share of the correlations between features that is taken for chance ("A well-conditioned estimator
            for large-dimensional covariance matrices", Ledoit and Wolf 2004, here towards the diagonal): calibration
            text is short, and not what users write.

    Raises:
        PlanishError: the matrix holds NaN or infinite values, or is far from positive semi-definite.
    """
    if not all(bool(torch.isfinite(t).all()) for t in (moment, drift) if t is not None):
        raise _unusable("it holds NaN or infinite values")
    squares = moment.diagonal()
    mean = float(squares.mean())
    if mean == 0:  # no input ever differed from zero
        return Curvature(torch.eye(len(moment)), torch.ones(len(moment)))
    share = damping
    while share <= 1 and mean > 0:
        damped = squares + share * mean
        factor = _inverse_factor(moment, damped, shrinkage)
        if factor is not None:
            return Curvature(factor, (damped / mean).to(torch.float32), drift)
        share = max(10 * share, LEAST_DAMPING)
    raise _unusable("it is not positive semi-definite")


def _inverse_factor(moment: Tensor, diagonal: Tensor, shrinkage: float) -> Tensor | None:
    """Upper triangular U with U^T U = (moment, shrunk, with this diagonal)^-1; None: it has none.

    It is the inverse of R in R R^T = moment, found with ones on the diagonal: the eigenvalues of a moment that was
    shrunk lie close together then, and float32 is enough.
    """
    exact = not shrinkage and len(moment) <= DOUBLE_UP_TO
    sizes = diagonal.to(torch.float64 if exact else torch.float32).sqrt()
    scaled = moment.to(sizes.dtype) * ((1 - shrinkage) / sizes) / sizes[:, None]
    scaled.diagonal().fill_(1)
    with one_thread():
        lower, failed = torch.linalg.cholesky_ex(scaled.flip(0, 1))
        return None if failed else (_inverse_of_upper(lower.flip(0, 1)) / sizes).to(torch.float32)


@contextmanager
def one_thread() -> Iterator[None]:
    """For what several threads compute in another order than one: integers do not depend on the machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _inverse_of_upper(upper: Tensor) -> Tensor:
    """By halves, so that nearly all of it is products of matrices."""
    size = len(upper)
    if size <= SMALL:
        return torch.linalg.solve_triangular(upper, torch.eye(size, dtype=upper.dtype), upper=True)
    half = size // 2
    inverse = torch.zeros_like(upper)
    inverse[:half, :half] = _inverse_of_upper(upper[:half, :half])
    inverse[half:, half:] = _inverse_of_upper(upper[half:, half:])
    inverse[:half, half:] = -inverse[:half, :half] @ upper[:half, half:] @ inverse[half:, half:]
    return inverse


def gptq(weight: Tensor, inputs: Curvature, format: WeightFormat) -> Rounded:
    """Round a weight so that its outputs, not its values, stay close.

    Args:
        weight: any float dtype, [N, K].
        inputs: of the activations that the weight is multiplied with.
        format: group divides K (0 = one group per row).

    Raises:
        PlanishError: the group does not divide K, or the weight holds NaN or infinite values.
    """
    rows, columns = weight.shape
    groups = columns // format.group if format.group else 1
    values = torch.empty(rows, columns, dtype=torch.int8)
    scales, zeros = torch.empty(rows, groups), torch.empty(rows, groups, dtype=torch.int8)
    step, moved = max(1, BLOCK // columns), inputs.moving(rows)
    for start in range(0, rows, step):
        block = cut(weight[start : start + step], format)
        block = moved(block.flatten(1)).view_as(block)
        part = _round_rows(block, inputs, format)
        for whole, piece in zip((values, scales, zeros), part, strict=True):
            whole[start : start + step] = piece
    return Rounded(values, scales, None if format.symmetric else zeros)


def _grid(members: Tensor, format: WeightFormat, importance: Tensor) -> Grid:
    """The best grid of each column, some columns at a time: temporaries stay in the processor's cache."""
    blocks = members.split(max(1, CACHED // len(members)), 1)
    shares = COARSE if format.bits <= 4 else SHARES
    grids = [least_error(block, format, importance, shares) for block in blocks]
    return torch.cat([scales for scales, _ in grids]), torch.cat([zeros for _, zeros in grids])


def _round_rows(block: Tensor, inputs: Curvature, format: WeightFormat) -> tuple[Tensor, Tensor, Tensor]:
    rows, groups, size = block.shape
    columns = groups * size
    width = format.group or min(WIDTH, columns)
    rest = block.view(rows, columns).t().contiguous()  # one contiguous row per input feature
    codes, (scales, zeros) = torch.empty_like(rest), torch.empty(2, groups, rows)
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        group = start // size
        if start % size == 0:
            members = slice(start, start + size)
            scales[group], zeros[group] = _grid(rest[members], format, inputs.importance[members, None])
        factor = inputs.factor[start:stop, start:]
        nearest = partial(_nearest, (scales[group], zeros[group]), format)
        errors = carry_errors(rest[start:stop], codes[start:stop], factor, nearest)
        rest[stop:].addmm_(factor[:, stop - start :].t(), errors, alpha=-1)
    return codes.t().to(torch.int8), scales.t(), zeros.t()


def _nearest(grid: Grid, format: WeightFormat, values: Tensor) -> tuple[Tensor, Tensor]:
    scales, zeros = grid
    codes = encode(values, grid, format)
    return codes, (codes - zeros).mul_(scales)


def carry_errors(
    rest: Tensor, codes: Tensor, factor: Tensor, nearest: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> Tensor:
    """Round the rows of `rest` one after the other into `codes`, each error made up for by the rows behind it.

    Args:
        rest: [k, N], one row per input feature; what is left to round, changed in place.
        codes: [k, N], written.
        factor: [k, >= k], rows of a `Curvature.factor` from its diagonal on.
        nearest: values [N] of one feature -> their codes, and the values that these stand for.

    Returns:
        Errors [k, N], scaled for what follows behind these rows.
    """
    errors = torch.empty_like(rest)
    scales = factor.diagonal().tolist()
    for i, (values, error) in enumerate(zip(rest.unbind(), errors.unbind(), strict=True)):
        codes[i], stored = nearest(values)
        torch.sub(values, stored, out=error).div_(scales[i])
        rest[i + 1 :].addr_(factor[i, i + 1 : len(rest)], error, alpha=-1)
    return errors


def _unusable(why: str) -> PlanishError:
    return PlanishError(
        f"the second moment of a linear's inputs cannot be used: {why}",
        "calibration",
        "calibrate with more or other text, or choose an algorithm without calibration",
    )
