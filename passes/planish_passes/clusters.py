"""The tables of palettes: k-means over the values of neighbouring channels, with or without a look at the inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from planish_passes.errors import PlanishError
from planish_passes.gptq import WIDTH, Curvature, carry_errors
from planish_passes.palette import Palette, PaletteFormat

ROUNDS = 60  # of Lloyd's algorithm; on weights of a model it moves nothing after about 40
_BINS = 512  # of the histogram that the first entries come from
_BLOCK = 1 << 22  # values that are sorted at a time
_HALF_MAX = 65504.0

Choose = Callable[[Tensor, Tensor], Tensor]
"""(rows [N, K], tables [G, E] of their groups) -> indices uint8 [N, K]."""


def cluster(weight: Tensor, format: PaletteFormat, importance: Tensor | None = None) -> Palette:
    """The tables that make the squared error small, and the nearest entry for each value.

    Lloyd's algorithm on sorted values, without a random start.

    Args:
        weight: any float dtype, [N, K].
        format: its group divides N.
        importance: non-negative weight of the error of each input feature, [K]; all alike when None.

    Raises:
        PlanishError: the group does not divide N, or the weight holds NaN or infinite values.
    """
    return _by_rows(weight, format, importance, lambda block: block, _nearest)


def cluster_calibrated(weight: Tensor, format: PaletteFormat, inputs: Curvature) -> Palette:
    """Tables and indices that keep a linear's outputs, not its values, close: GPTQ with a table for a grid.

    Tables come from k-means in which an input's mean square weighs its errors. Then input features are rounded one
    after the other, those with the largest mean square first, and what each rounding loses is made up for by the
    features that are still to come.

    Args:
        weight, format: as for `cluster`.
        inputs: of the activations that the weight is multiplied with.

    Raises:
        PlanishError: as `cluster`.
    """
    order = inputs.importance.argsort(descending=True, stable=True)
    factor = _reordered(inputs.factor, order)

    def choose(rows: Tensor, tables: Tensor) -> Tensor:
        rest = rows.t()[order].contiguous()  # one contiguous row per input feature
        indices = torch.empty(rest.shape, dtype=torch.uint8)
        middles = _middles(tables)

        def nearest(values: Tensor) -> tuple[Tensor, Tensor]:
            found = torch.searchsorted(middles, values.view(len(tables), -1))
            return found.view(-1).to(torch.uint8), tables.gather(1, found).view(-1)

        for start in range(0, len(rest), WIDTH):
            stop = min(start + WIDTH, len(rest))
            ahead = factor[start:stop, start:]
            errors = carry_errors(rest[start:stop], indices[start:stop], ahead, nearest)
            rest[stop:].addmm_(ahead[:, stop - start :].t(), errors, alpha=-1)
        return torch.empty_like(indices).index_copy_(0, order, indices).t()

    return _by_rows(weight, format, inputs.importance, inputs.moving(len(weight)), choose)


def _reordered(factor: Tensor, order: Tensor) -> Tensor:
    """The factor of the inverse moment whose features have another order."""
    wide = factor.double()
    inverse = (wide.t() @ wide)[order][:, order]
    return torch.linalg.cholesky(inverse, upper=True).to(torch.float32)


def _by_rows(
    weight: Tensor,
    format: PaletteFormat,
    importance: Tensor | None,
    moved: Callable[[Tensor], Tensor],
    choose: Choose,
) -> Palette:
    rows, columns = weight.shape
    group, entries = format.group, 2**format.bits
    if rows % group:
        raise PlanishError(
            f"{rows} output channels do not divide into groups of {group}", "palette", "choose another group"
        )
    if not bool(torch.isfinite(weight).all()):
        raise PlanishError("the weight holds NaN or infinite values", "palette", "check the checkpoint")
    indices = torch.empty(rows, columns, dtype=torch.uint8)
    tables = torch.empty(rows // group, entries)
    step = max(1, _BLOCK // (group * columns))
    for at in range(0, rows // group, step):
        span = slice(at * group, (at + step) * group)
        block = moved(weight[span].float())
        weights = None if importance is None else importance.repeat(group)
        found = _lloyd(block.reshape(-1, group * columns), entries, weights)
        tables[at : at + len(found)] = found
        indices[span] = choose(block, found)
    return Palette(indices, tables)


def _nearest(rows: Tensor, tables: Tensor) -> Tensor:
    found = torch.searchsorted(_middles(tables), rows.reshape(len(tables), -1))
    return found.to(torch.uint8).view(rows.shape)


def _middles(tables: Tensor) -> Tensor:
    return (tables[:, 1:] + tables[:, :-1]) / 2


def _lloyd(values: Tensor, entries: int, weights: Tensor | None) -> Tensor:
    """Ascending entries [G, E], float32 numbers that float16 holds, for values [G, n] with weights [n]."""
    ordered, places = values.double().sort(dim=1)
    mass = torch.ones_like(ordered) if weights is None else weights.double()[places]
    masses, moments = (torch.nn.functional.pad(t.cumsum(1), (1, 0)) for t in (mass, mass * ordered))
    centres = _first(ordered, entries)
    ends = torch.zeros(len(values), 1, dtype=torch.int64), torch.full((len(values), 1), values.shape[1])
    for _ in range(ROUNDS):
        cuts = torch.cat([ends[0], torch.searchsorted(ordered, _middles(centres)), ends[1]], 1)
        held, total = (sums.gather(1, cuts).diff(dim=1) for sums in (masses, moments))
        moved = torch.where(held > 0, total / held.clamp(min=1e-300), centres).sort(dim=1).values
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres.clamp(-_HALF_MAX, _HALF_MAX).half().float()  # as files hold them; indices are chosen for these


def _first(ordered: Tensor, entries: int) -> Tensor:
    """Spacing by the cube root of the density, which is the best one for many entries (Panter and Dite, 1951)."""
    low, high = ordered[:, :1], ordered[:, -1:]
    edges = low + (high - low) * torch.linspace(0, 1, _BINS + 1, dtype=ordered.dtype)
    counts = torch.searchsorted(ordered, edges[:, 1:].contiguous(), right=True).double()
    density = torch.diff(counts, dim=1, prepend=torch.zeros_like(low)).clamp(min=0) ** (1 / 3)
    share = density.cumsum(1) / density.sum(1, keepdim=True).clamp(min=1e-300)
    wanted = (torch.arange(entries, dtype=ordered.dtype) + 0.5).div(entries).expand(len(ordered), -1).contiguous()
    return edges.gather(1, torch.searchsorted(share, wanted).clamp(max=_BINS - 1) + 1)
