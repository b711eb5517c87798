import math

import pytest
import torch

from planish.verify.cases import Case
from planish.verify.compare import agreement, pooled, similarity, worst

MASK = torch.tensor([[1, 1, 0]])
CASES = [Case("a", {"attention_mask": MASK})]
TRUTH = {"a": {"y": torch.tensor([[[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]]])}}


def found(*rows: tuple[float, float]) -> dict[str, dict[str, torch.Tensor]]:
    return {"a": {"y": torch.tensor([rows])}}


def test_padding_does_not_count() -> None:
    other = found((1.0, 0.0), (0.0, 2.0), (-9.0, 9.0))
    assert worst(CASES, other, TRUTH, "max_abs").value == 0
    assert worst(CASES, other, TRUTH, "cosine").value == 1
    assert agreement(CASES, other, TRUTH) == 1
    assert torch.equal(pooled(CASES, other, "y"), pooled(CASES, TRUTH, "y"))


def test_texts_of_several_lengths_without_a_mask_are_pooled() -> None:
    cases = [Case("long", {"input_ids": torch.ones(1, 3)}), Case("short", {"input_ids": torch.ones(1, 2)})]
    truth = {"long": {"y": torch.eye(3)[None]}, "short": {"y": torch.eye(3)[None, :2]}}
    assert pooled(cases, truth, "y").shape == (2, 3)
    other = {**truth, "short": {"y": truth["short"]["y"].flip(-1)}}
    assert similarity(pooled(cases, other, "y"), pooled(cases, truth, "y")).tolist() == pytest.approx([1, 0.5])


def test_each_measure_sees_a_change() -> None:
    other = found((0.0, 1.0), (0.0, 2.0), (5.0, 5.0))
    assert worst(CASES, other, TRUTH, "max_abs").value == 1
    assert worst(CASES, other, TRUTH, "relative").value == 0.5
    assert worst(CASES, other, TRUTH, "cosine").value == 0
    assert worst(CASES, other, TRUTH, "cosine_all").value == pytest.approx(0.8)
    assert agreement(CASES, other, TRUTH) == 0.5


@pytest.mark.parametrize("kind", ["max_abs", "relative", "cosine", "cosine_all"])
def test_nan_is_the_worst_value(kind: str) -> None:
    assert math.isnan(worst(CASES, found((math.nan, 0.0), (0.0, 2.0), (5.0, 5.0)), TRUTH, kind).value)


def test_equal_zero_rows_are_alike() -> None:
    assert similarity(torch.zeros(2, 3), torch.tensor([[0.0, 0, 0], [0, 1, 0]])).tolist() == [1.0, 0.0]
