"""What k-means finds, with and without a look at the inputs."""

from __future__ import annotations

import pytest
import torch

from planish_passes import clusters
from planish_passes.clusters import cluster, cluster_calibrated
from planish_passes.errors import PlanishError
from planish_passes.gptq import curvature
from planish_passes.palette import Palette, PaletteFormat, look_up


def normal(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_values_that_fit_into_the_tables_are_kept() -> None:
    entries = torch.linspace(-2, 2, 16).half().float()
    chosen = torch.randint(0, 16, (8, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    weight = entries[chosen.long()]
    found = cluster(weight, PaletteFormat(4, 4))
    assert torch.equal(found.indices, chosen)
    assert torch.equal(found.dequantize(), weight)


def test_entries_are_ascending_float16_and_the_nearest_one_is_taken() -> None:
    weight = normal(32, 96)
    found = cluster(weight, PaletteFormat(4, 16))
    assert found.tables.shape == (2, 16)
    assert torch.equal(found.tables, found.tables.sort(dim=1).values)
    assert torch.equal(found.tables, found.tables.half().float())
    distance = (weight.view(2, -1, 1) - found.tables.view(2, 1, 16)).abs()
    assert torch.equal(distance.min(-1).values, (weight - found.dequantize()).abs().view(2, -1))


def test_normal_values_come_close_to_the_best_quantiser_of_16_values() -> None:
    weight = normal(16, 4096)
    error = (weight - cluster(weight, PaletteFormat(4, 16)).dequantize()).square().mean()
    assert error < 0.00965  # Max (1960), "Quantizing for minimum distortion", table I: 0.009497


def test_each_group_has_its_own_table() -> None:
    weight = torch.cat([normal(4, 64), 100 * normal(4, 64, 1)])
    found = cluster(weight, PaletteFormat(4, 4))
    assert found.tables[1].abs().max() > 20 * found.tables[0].abs().max()
    assert torch.equal(found.dequantize()[:4], look_up(found.indices[:4], found.tables[:1]))


def test_what_has_no_palette_is_refused() -> None:
    with pytest.raises(PlanishError, match="10 output channels"):
        cluster(normal(10, 4), PaletteFormat(4, 4))
    with pytest.raises(PlanishError, match="NaN"):
        cluster(torch.tensor([[float("nan")]]), PaletteFormat(4, 1))


def inputs(columns: int) -> torch.Tensor:
    """Correlated features, a few of them large, as in language models."""
    return normal(2000, columns, 3) @ normal(columns, columns, 4) * torch.exp(normal(1, columns, 5))


def lost(weight: torch.Tensor, palette: Palette, moment: torch.Tensor) -> float:
    """Squared change of a linear's outputs."""
    difference = palette.dequantize() - weight
    return float(torch.linalg.vecdot(difference @ moment, difference).sum())


@pytest.mark.parametrize("format", [PaletteFormat(4, 16), PaletteFormat(2, 8), PaletteFormat(6, 48)])
def test_a_look_at_the_inputs_keeps_outputs_closer(format: PaletteFormat) -> None:
    weight, x = normal(48, 160), inputs(160)
    moment, other = x[:1000].T @ x[:1000], x[1000:].T @ x[1000:]  # other: tokens that were not seen
    seen = curvature(moment, 0.05)
    plain, weighted = cluster(weight, format), cluster(weight, format, seen.importance)
    calibrated = cluster_calibrated(weight, format, seen)
    assert torch.equal(calibrated.tables, weighted.tables)
    assert lost(weight, weighted, other) < 0.95 * lost(weight, plain, other)
    assert lost(weight, calibrated, other) < 0.6 * lost(weight, weighted, other)


def test_uncorrelated_inputs_change_nothing() -> None:
    weight = normal(32, 64)
    found, plain = (
        cluster_calibrated(weight, PaletteFormat(4, 16), curvature(torch.eye(64))),
        cluster(weight, PaletteFormat(4, 16)),
    )
    assert torch.equal(found.indices, plain.indices)
    assert torch.equal(found.tables, plain.tables)


def test_features_with_the_largest_mean_square_are_rounded_first() -> None:
    """What one feature loses, those behind it make up for: of two equal features only the first keeps its error."""
    weight = normal(16, 2)
    moment = torch.tensor([[1.0, 1.9], [1.9, 4.0]])
    found = cluster_calibrated(weight, PaletteFormat(2, 16), curvature(moment))
    nearest = (weight[..., None] - found.tables.view(1, 1, -1)).abs().argmin(-1)
    assert torch.equal(found.indices[:, 1].long(), nearest[:, 1])
    assert not torch.equal(found.indices[:, 0].long(), nearest[:, 0])


def test_drift_moves_the_weight_before_it_is_rounded() -> None:
    weight, x = normal(16, 32), inputs(32)
    moment = x.T @ x
    shifted = curvature(moment, 0.05, drift=0.1 * moment)
    found = cluster_calibrated(weight, PaletteFormat(6, 16), shifted)
    assert lost(1.1 * weight, found, moment) < 0.2 * lost(weight, found, moment)


def test_row_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = normal(32, 64), inputs(64)
    seen, format = curvature(x.T @ x), PaletteFormat(4, 8)
    whole = cluster_calibrated(weight, format, seen)
    monkeypatch.setattr(clusters, "_BLOCK", 8 * 64)
    parts = cluster_calibrated(weight, format, seen)
    assert torch.equal(whole.tables, parts.tables)
    assert torch.equal(whole.indices, parts.indices)
