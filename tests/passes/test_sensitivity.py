import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish_passes import sensitivity
from planish_passes.errors import PlanishError
from planish_passes.ops import dequantize
from planish_passes.rounding import round_to_nearest
from planish_passes.sensitivity import Choice, allocate, output_error
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


def test_output_error_is_what_the_outputs_show(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(24, 64, generator=generator), torch.randn(500, 64, generator=generator)
    x = x @ torch.randn(64, 64, generator=generator)
    for format in (INT4, INT8, WeightFormat(4, 32)):
        rounded = round_to_nearest(weight, format)
        before, after = x @ weight.T, x @ dequantize(*rounded, torch.float32).T
        expected = float((after - before).square().sum() / before.square().sum())
        for size in (1, 1 << 20):
            monkeypatch.setattr(sensitivity, "BLOCK", size)
            assert output_error(weight, rounded, x.T @ x) == pytest.approx(expected, rel=1e-3)
    assert output_error(torch.zeros(4, 64), round_to_nearest(torch.zeros(4, 64), INT4), x.T @ x) == 0
