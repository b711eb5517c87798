import pytest
import torch
from torch import Tensor

from planish_passes import gptq as module
from planish_passes.errors import PlanishError
from planish_passes.gptq import curvature, gptq
from planish_passes.ops import dequantize
from planish_passes.rounding import SHARES, Rounded, round_to_nearest, search
from planish_passes.weights import WeightFormat

FORMATS = [
    WeightFormat(4, 32, False),
    WeightFormat(4, 32),
    WeightFormat(4, 0, False),
    WeightFormat(8, 32, False),
    WeightFormat(8),
    WeightFormat(3, 64, False),
]
INT4 = WeightFormat(4, 32, False)


def inputs(columns: int, tokens: int = 2000, seed: int = 0) -> Tensor:
    """Correlated features, a few of them large, as in language models."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return mixed * torch.exp(torch.randn(columns, generator=generator))


def output_error(weight: Tensor, rounded: Rounded, moment: Tensor) -> float:
    """Mean squared change of a linear's outputs as a share of their mean square; `moment` [K, K] is x^T x."""
    difference = dequantize(*rounded, torch.float32) - weight
    return float(torch.linalg.vecdot(difference @ moment, difference).sum()) / float(
        torch.linalg.vecdot(weight @ moment, weight).sum()
    )


def weights(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(7))


def assert_sound(rounded: Rounded, weight: Tensor, format: WeightFormat) -> None:
    low, high = format.range
    assert rounded.values.shape == weight.shape
    assert low <= int(rounded.values.min())
    assert int(rounded.values.max()) <= high
    assert torch.equal(rounded.scales.half().float(), rounded.scales)
    assert bool((rounded.scales > 0).all())
    assert (rounded.zero_points is None) == format.symmetric
    assert bool(dequantize(*rounded, torch.float32).isfinite().all())


@pytest.mark.parametrize("columns", [192, 320])
@pytest.mark.parametrize("format", FORMATS)
def test_outputs_are_much_closer_on_tokens_that_were_not_seen(format: WeightFormat, columns: int) -> None:
    weight = weights(48, columns)
    x = inputs(columns, 4000)
    moment, other = x[:2000].T @ x[:2000], x[2000:].T @ x[2000:]
    rounded = gptq(weight, curvature(moment), format)
    assert_sound(rounded, weight, format)
    found = output_error(weight, rounded, other)
    assert 0 < found < 0.7 * output_error(weight, search(weight, format), other)
    assert found < 0.5 * output_error(weight, round_to_nearest(weight, format), other)


def test_without_correlation_it_is_the_weighted_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COARSE", SHARES)
    weight, sizes = weights(16, 96), torch.exp(torch.randn(96, generator=torch.Generator().manual_seed(3)))
    rounded = gptq(weight, curvature(torch.diag(sizes), damping=0), INT4)
    for part, expected in zip(rounded, search(weight, INT4, sizes), strict=True):
        assert torch.equal(part, expected)


@pytest.mark.parametrize("format", FORMATS)
def test_blocks_of_rows_do_not_matter(format: WeightFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = weights(29, 192), inputs(192)
    given = curvature(x.T @ x)
    results = []
    for size in (7 * 192, 1 << 21):
        monkeypatch.setattr(module, "BLOCK", size)
        results.append(gptq(weight, given, format))
    # Sums of float32 in another order: an integer at a tie may fall to the other side, and others then make up for it.
    found = [output_error(weight, r, x.T @ x) for r in results]
    assert found[0] == pytest.approx(found[1], rel=0.05)
    assert (results[0].values == results[1].values).float().mean() > 0.7


def test_the_scale_of_the_moment_does_not_matter() -> None:
    weight, x = weights(16, 96), inputs(96)
    one, other = (gptq(weight, curvature(x.T @ x * factor), INT4) for factor in (1.0, 2.0**-20))
    for part, expected in zip(one, other, strict=True):
        assert torch.equal(part, expected)


def test_drifted_inputs_give_the_wanted_outputs() -> None:
    """Inputs that lost a part which other features still show: the weight makes up for it."""
    weight, wanted = weights(16, 96), inputs(96, 4000)
    given = wanted.clone()
    given[:, 40:50] *= 0.5
    moment, drift = given.T @ given, (wanted - given).T @ given
    errors = []
    for share in (0.0, 0.5, 1.0):
        rounded = gptq(weight, curvature(moment, drift=drift * share), INT4)
        assert_sound(rounded, weight, INT4)
        outputs = given @ dequantize(*rounded, torch.float32).T
        errors.append(float((outputs - wanted @ weight.T).square().mean()))
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.5 * errors[0]


def test_correlations_of_a_short_text_are_not_believed() -> None:
    """With fewer tokens than features the moment is full of chance; half of it helps, all of it harms."""
    x = inputs(192, 4000)
    weight, short, other = weights(48, 192), x[:160].T @ x[:160], x[2000:].T @ x[2000:]
    found = [
        output_error(weight, gptq(weight, curvature(short, shrinkage=share), INT4), other) for share in (0.0, 0.5, 1.0)
    ]
    assert found[1] < 0.9 * found[0]
    assert found[1] < 0.9 * found[2]


def test_the_factor_is_that_of_the_inverse() -> None:
    x = torch.randn(1000, 300, generator=torch.Generator().manual_seed(5))
    moment = x.T @ x
    factor = curvature(moment, damping=0).factor.double()
    assert torch.equal(factor, factor.triu())
    one = torch.eye(300, dtype=torch.float64)
    torch.testing.assert_close(factor.T @ factor @ moment.double(), one, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shrinkage", [0.0, 0.5])
def test_the_factor_does_not_depend_on_the_number_of_threads(shrinkage: float) -> None:
    """Factorisations on several threads sum in another order; one other bit gives other integers."""
    generator, before, found = torch.Generator().manual_seed(0), torch.get_num_threads(), []
    x = torch.randn(1536, 1536, generator=generator) * torch.exp(torch.randn(1536, generator=generator))
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(curvature(x.T @ x, shrinkage=shrinkage).factor)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_features_that_were_never_seen_keep_their_weights() -> None:
    """Calibration text is short: a feature that stayed zero in it may matter to the user's text."""
    weight, x = weights(16, 96), inputs(96)
    x[:, 10], x[:, 32:64] = 0, 0
    rounded = gptq(weight, curvature(x.T @ x), INT4)
    assert_sound(rounded, weight, INT4)
    error = (dequantize(*rounded, torch.float32) - weight).abs()[:, 32:64]
    assert bool((error <= rounded.scales[:, 1:2] * 4).all())
    assert float(error.mean()) < 0.12
    for part in gptq(weight, curvature(torch.zeros(96, 96)), INT4):
        assert part is not None


@pytest.mark.parametrize("value", [0.0, 0.37, 1e9, 1e-12])
def test_constant_weights(value: float) -> None:
    weight, x = torch.full((4, 96), value), inputs(96)
    for format in (INT4, WeightFormat(4, 32)):
        assert_sound(gptq(weight, curvature(x.T @ x), format), weight, format)


def test_half_precision_input() -> None:
    weight, x = weights(16, 96).to(torch.bfloat16), inputs(96)
    given = curvature(x.T @ x)
    for part, expected in zip(gptq(weight, given, INT4), gptq(weight.float(), given, INT4), strict=True):
        assert torch.equal(part, expected)


def test_fewer_tokens_than_features() -> None:
    x = inputs(192, tokens=20)
    weight = weights(16, 192)
    assert_sound(gptq(weight, curvature(x.T @ x), INT4), weight, INT4)


def test_a_singular_moment_gets_more_damping(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 factorisations of a rank-one moment need more than the first damping."""
    monkeypatch.setattr(module, "DOUBLE_UP_TO", 0)
    x = inputs(192, tokens=1)
    weight = weights(16, 192)
    assert_sound(gptq(weight, curvature(x.T @ x, damping=1e-7), INT4), weight, INT4)


def test_what_cannot_be_used_is_refused() -> None:
    x = inputs(96)
    given = curvature(x.T @ x)
    with pytest.raises(PlanishError, match="do not divide"):
        gptq(weights(4, 40), given, INT4)
    with pytest.raises(PlanishError, match="not positive"):
        curvature(torch.full((96, 96), 5.0).fill_diagonal_(1.0))
    with pytest.raises(PlanishError, match="not positive"):
        curvature(-torch.eye(96))
    for bad in (float("nan"), float("inf")):
        weight = weights(4, 96)
        weight[1, 5] = bad
        with pytest.raises(PlanishError, match="NaN or infinite"):
            gptq(weight, given, INT4)
        with pytest.raises(PlanishError, match="NaN or infinite"):
            curvature(torch.full((96, 96), bad))
