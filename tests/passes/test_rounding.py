import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import symmetric_scales, symmetric_values
from torch import Tensor

from planish_passes import rounding
from planish_passes.errors import PlanishError
from planish_passes.ops import dequantize
from planish_passes.rounding import Rounded, round_to_nearest, search
from planish_passes.weights import WeightFormat

METHODS = [round_to_nearest, search]
FORMATS = [
    WeightFormat(4, 32, False),
    WeightFormat(4, 16),
    WeightFormat(4, 0, False),
    WeightFormat(8, 32, False),
    WeightFormat(8),
    WeightFormat(3, 32, False),
]
INT4 = WeightFormat(4, 32, False)


def noise(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def errors(weight: Tensor, rounded: Rounded, importance: Tensor | None = None) -> Tensor:
    """Summed squared error per scale."""
    difference = (dequantize(*rounded, torch.float32) - weight.float()).square()
    difference = difference if importance is None else difference * importance
    return difference.view(*rounded.scales.shape, -1).sum(-1)


def assert_sound(rounded: Rounded, weight: Tensor, format: WeightFormat) -> None:
    low, high = format.range
    groups = weight.shape[1] // format.group if format.group else 1
    assert rounded.values.shape == weight.shape
    assert rounded.values.dtype == torch.int8
    assert low <= int(rounded.values.min())
    assert int(rounded.values.max()) <= high
    assert rounded.scales.shape == (len(weight), groups)
    assert torch.equal(rounded.scales.half().float(), rounded.scales)
    if format.group:
        assert torch.equal(rounded.scales.bfloat16().float(), rounded.scales)
    assert bool(((rounded.scales >= 2.0**-14) & rounded.scales.isfinite()).all())
    assert (rounded.zero_points is None) == format.symmetric
    if rounded.zero_points is not None:
        assert rounded.zero_points.dtype == torch.int8
        assert rounded.zero_points.shape == rounded.scales.shape
        assert low <= int(rounded.zero_points.min())
        assert int(rounded.zero_points.max()) <= high
    assert bool(dequantize(*rounded, torch.float32).isfinite().all())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5),
    st.sampled_from([32, 96]),
    st.floats(1e-6, 1e3),
    st.floats(-3, 3),
    st.sampled_from(FORMATS),
    st.integers(0, 2**31),
)
def test_sound_and_never_worse_than_the_nearest(
    rows: int, columns: int, size: float, shift: float, format: WeightFormat, seed: int
) -> None:
    weight = (noise(rows, columns, seed) + shift) * size
    importance = noise(1, columns, seed + 1)[0].exp()
    nearest, searched, weighed = (
        round_to_nearest(weight, format),
        search(weight, format),
        search(weight, format, importance),
    )
    for rounded in (nearest, searched, weighed):
        assert_sound(rounded, weight, format)
    assert bool((errors(weight, searched) <= errors(weight, nearest) * 1.0001 + 1e-30).all())
    assert bool((errors(weight, weighed, importance) <= errors(weight, nearest, importance) * 1.0001 + 1e-30).all())


@pytest.mark.parametrize("format", FORMATS)
def test_the_nearest_integer_of_the_grid_is_taken(format: WeightFormat) -> None:
    weight = noise(8, 96)
    for method in METHODS:
        values, scales, zeros = method(weight, format)
        grouped = weight.view(*scales.shape, -1)
        zero = torch.zeros_like(scales) if zeros is None else zeros.float()
        low, high = format.range
        grid = (torch.arange(low, high + 1) - zero[..., None]) * scales[..., None]
        best = (grouped[..., None] - grid[..., None, :]).abs().amin(-1)
        found = (dequantize(values, scales, zeros, torch.float32) - weight).abs().view_as(best)
        torch.testing.assert_close(found, best, rtol=1e-4, atol=1e-6)


def test_nearest_is_what_the_per_channel_recipe_does() -> None:
    weight = noise(64, 96)
    for format in (WeightFormat(8), WeightFormat(4, 32)):
        values, scales, _ = round_to_nearest(weight, format)
        expected = symmetric_scales(weight, format)
        assert torch.equal(scales, expected)
        assert torch.equal(values, symmetric_values(weight, expected, format))


@pytest.mark.parametrize("levels", [16, 15, 14])
def test_a_weight_that_lies_on_a_grid_is_recovered_exactly(levels: int) -> None:
    """Also where a group does not reach both ends of its grid (only the search can find that)."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, levels, (64, 4, 32), generator=generator)
    codes[..., 0], codes[..., 1] = 0, levels - 1  # every level in between is possible
    zeros = torch.randint(1, 13, (64, 4, 1), generator=generator)
    scales = (torch.rand(64, 4, 1, generator=generator) + 0.5).bfloat16().float()
    weight = ((codes - zeros) * scales).view(64, 128)
    assert float(errors(weight, search(weight, INT4)).max()) < 1e-9
    if levels == 16:
        assert float(errors(weight, round_to_nearest(weight, INT4)).max()) < 1e-9
    else:
        assert float(errors(weight, round_to_nearest(weight, INT4)).max()) > 1e-3


@pytest.mark.parametrize("format", [INT4, WeightFormat(4, 32), WeightFormat(4, 32, False)])
def test_search_is_clearly_better_on_bell_shaped_weights(format: WeightFormat) -> None:
    weight = noise(256, 256)
    assert errors(weight, search(weight, format)).sum() < 0.9 * errors(weight, round_to_nearest(weight, format)).sum()


def test_importance_moves_the_grid_to_what_matters() -> None:
    weight = noise(64, 32)
    weight[:, 0] *= 4
    importance = torch.ones(32)
    importance[0] = 1000
    plain, weighed = search(weight, INT4), search(weight, INT4, importance)
    assert errors(weight, weighed, importance).sum() < 0.5 * errors(weight, plain, importance).sum()
    assert errors(weight, plain).sum() < errors(weight, weighed).sum()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("format", FORMATS)
def test_the_block_size_does_not_matter(
    method: rounding.Fit, format: WeightFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = noise(37, 96)
    results = []
    for size in (1, 5 * 96, 1 << 20):
        monkeypatch.setattr(rounding, "BLOCK", size)
        results.append(method(weight, format))
    for part in zip(*results, strict=True):
        assert part[0] is None or all(torch.equal(part[0], other) for other in part[1:])


EDGES = {
    "zero": torch.zeros(3, 32),
    "constant": torch.full((3, 32), 0.37),
    "negative constant": torch.full((3, 32), -2.5),
    "tiny": noise(3, 32) * 1e-12,
    "subnormal": torch.full((3, 32), 1e-42),
    "one outlier": torch.cat([torch.full((3, 1), 1e4), noise(3, 31) * 1e-3], dim=1),
    "beyond float16": noise(3, 32) * 1e9,
    "both ends of float32": torch.tensor([[3e38, -3e38] * 16] * 3),
}


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("method", METHODS)
def test_edges(name: str, format: WeightFormat, method: rounding.Fit) -> None:
    assert_sound(method(EDGES[name], format), EDGES[name], format)


@pytest.mark.parametrize("method", METHODS)
def test_zero_stays_zero_and_constants_stay_close(method: rounding.Fit) -> None:
    for format in FORMATS:
        assert not dequantize(*method(torch.zeros(2, 32), format), torch.float32).any()
        near = dequantize(*method(torch.full((2, 32), 0.37), format), torch.float32)
        assert float((near - 0.37).abs().max()) < 0.37 * 2**-7


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_input_gives_what_its_float32_values_give(method: rounding.Fit) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        weight = noise(16, 96).to(dtype)
        for part, other in zip(method(weight, INT4), method(weight.float(), INT4), strict=True):
            assert torch.equal(part, other)


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_rounded_is_refused(method: rounding.Fit) -> None:
    with pytest.raises(PlanishError, match="do not divide"):
        method(noise(4, 40), INT4)
    for bad in (float("nan"), float("inf"), -float("inf")):
        weight = noise(4, 64)
        weight[2, 40] = bad
        with pytest.raises(PlanishError, match="NaN or infinite"):
            method(weight, INT4)
