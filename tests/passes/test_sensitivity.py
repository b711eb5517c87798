import itertools
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import program_of
from torch import Tensor, nn

from planish_passes import sensitivity
from planish_passes.errors import PlanishError
from planish_passes.ops import dequantize
from planish_passes.rounding import round_to_nearest
from planish_passes.sensitivity import Choice, allocate, estimated, measured
from planish_passes.weights import WeightFormat

INT4, INT8 = WeightFormat(4, 32, False), WeightFormat(8, 32, False)


def two(small: float, large: float, size: int = 100) -> list[Choice]:
    return [Choice(INT4, size, small), Choice(INT8, 2 * size, large)]


def total(chosen: dict[str, Choice]) -> tuple[int, float]:
    return sum(c.nbytes for c in chosen.values()), sum(c.error for c in chosen.values())


def test_the_weight_that_gains_most_per_byte_gets_the_bits() -> None:
    choices = {"mild": two(1.0, 0.5), "harsh": two(9.0, 1.0), "large": two(10.0, 1.0, size=1000)}
    assert {n: c.format.bits for n, c in allocate(choices, 1300).items()} == {"mild": 4, "harsh": 8, "large": 4}
    assert {n: c.format.bits for n, c in allocate(choices, 1400).items()} == {"mild": 8, "harsh": 8, "large": 4}
    assert {n: c.format.bits for n, c in allocate(choices, 2400).items()} == {"mild": 8, "harsh": 8, "large": 8}
    assert {n: c.format.bits for n, c in allocate(choices, 1200).items()} == {"mild": 4, "harsh": 4, "large": 4}


def test_several_small_gains_beat_a_large_one_of_the_same_bytes() -> None:
    choices = {"large": two(10.0, 1.0, size=400), **{str(i): two(4.0, 1.0) for i in range(4)}}
    assert {n for n, c in allocate(choices, 1200).items() if c.format.bits == 8} == {"0", "1", "2", "3"}


def test_a_larger_choice_that_is_worse_is_never_taken() -> None:
    assert allocate({"a": [Choice(INT8, 50, 0.5), Choice(INT4, 20, 0.1)]}, 1000)["a"].nbytes == 20


def test_of_two_choices_of_one_size_the_better_is_taken() -> None:
    assert allocate({"a": [Choice(INT8, 20, 0.5), Choice(INT4, 20, 0.1)]}, 20)["a"].error == 0.1


def test_too_small_a_budget_is_refused_with_the_size_that_is_needed() -> None:
    with pytest.raises(PlanishError, match="at least 200 bytes, 199 are allowed"):
        allocate({"a": two(1, 0), "b": two(1, 0)}, 199)
    assert allocate({}, 0) == {}


_OPTION = st.tuples(st.integers(1, 40), st.floats(0, 10))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(_OPTION, min_size=1, max_size=3), min_size=1, max_size=5), st.integers(0, 60))
def test_against_all_combinations(options: list[list[tuple[int, float]]], room: int) -> None:
    choices = {str(i): [Choice(INT4, *o) for o in given] for i, given in enumerate(options)}
    budget = sum(min(o[0] for o in given) for given in options) + room
    nbytes, error = total(allocate(choices, budget))
    assert nbytes <= budget
    combinations = [total(dict(zip(choices, c, strict=True))) for c in itertools.product(*choices.values())]
    # What is given up is at most what one change could have saved, and nothing for the bytes that are spent.
    best = min(e for n, e in combinations if n <= budget)
    largest = max(max(o[1] for o in given) - min(o[1] for o in given) for given in options)
    assert error <= best + largest + 1e-9


def test_more_room_is_never_worse_on_convex_choices() -> None:
    choices = {str(i): two(1.0 + i, 0.1) for i in range(6)}
    found = [total(allocate(choices, budget))[1] for budget in range(600, 1300, 50)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < found[0]


class Two(nn.Module):
    """The first layer matters a thousand times less than the second."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.quiet, self.loud = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.quiet(x) * 1e-3 + self.loud(x)


def away(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> float:
    return float((found["y0"] - truth["y0"]).square().sum())


def test_what_is_measured_is_what_the_outputs_show_of_each_unit_alone() -> None:
    module, x = Two(), torch.randn(8, 64)
    program = program_of(module, x)
    units = {"q": {"quiet.weight": INT4}, "l": {"loud.weight": INT4}}
    found = dict(
        measured(program, {**units, "both": {**units["q"], **units["l"]}}, round_to_nearest, [{"x0": x}], away)
    )
    weight = module.loud.weight.detach()
    lost = dequantize(*round_to_nearest(weight, INT4), torch.float32) - weight
    assert found["l"] == pytest.approx(float((x @ lost.T).square().sum()), rel=1e-3)
    assert 0 < found["q"] < found["l"] * 1e-4
    assert found["both"] == pytest.approx(found["q"] + found["l"], rel=0.05)
    assert dict(measured(program, {"none": {}}, round_to_nearest, [{"x0": x}], away)) == {"none": 0}


def test_what_is_estimated_is_the_share_of_the_weight_that_rounding_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    program = program_of(Two(), torch.randn(8, 64))
    weight = Two().loud.weight.detach()
    lost = dequantize(*round_to_nearest(weight, INT4), torch.float32) - weight
    expected = float(lost.square().sum() / weight.square().sum())
    for size in (1, 1 << 20):
        monkeypatch.setattr(sensitivity, "BLOCK", size)
        one = estimated(program.weights, {"loud.weight": INT4}, round_to_nearest)
        assert one == pytest.approx(expected, rel=1e-3)
    assert estimated(program.weights, {"loud.weight": INT8}, round_to_nearest) < expected / 100
