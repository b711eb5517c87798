"""The scan for NaN and infinity finds the first one, wherever it is, and nothing else."""

from __future__ import annotations

import pytest
import torch

from planish.checkpoint import check_finite
from planish.checkpoint.finite import _BLOCK, first_not_finite
from planish_passes.errors import PlanishError
from planish_passes.weights import WeightStore


@pytest.mark.parametrize("position", [0, 1, _BLOCK - 1, _BLOCK, 2 * _BLOCK + 5])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_finds_the_first(position: int, value: float) -> None:
    tensor = torch.zeros(2 * _BLOCK + 6)
    tensor[position:] = value
    found = first_not_finite(tensor)
    assert found is not None
    assert found[0] == (position,)
    assert str(found[1]) == str(value)


def test_both_infinities_do_not_cancel() -> None:
    assert first_not_finite(torch.tensor([1.0, float("inf"), float("-inf")])) == ((1,), float("inf"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_finite_values_pass(dtype: torch.dtype) -> None:
    assert first_not_finite(torch.full((4, 1000), torch.finfo(dtype).max, dtype=dtype)) is None


def test_empty_and_scalar() -> None:
    assert first_not_finite(torch.zeros(0, 3)) is None
    assert first_not_finite(torch.tensor(float("nan"))) is not None


def test_store() -> None:
    store = WeightStore().with_tensor("good", torch.ones(3)).with_tensor("count", torch.tensor(3))
    seen: list[str] = []
    check_finite(store, release=seen.append)
    assert seen == ["good"]
    bad = store.with_lazy("bad", store.spec("good"), lambda: torch.tensor([0, 0, float("nan")]), ("file.key",))
    check_finite(bad, skip={"bad"})
    with pytest.raises(PlanishError, match=r"bad holds nan at index \[2\]") as caught:
        check_finite(bad, where="model.safetensors")
    assert caught.value.where == "model.safetensors: file.key"
