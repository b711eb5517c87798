import pytest
import torch

from planish_passes.weights import QuantizedTensor, TensorSpec, WeightFormat, WeightStore


def test_a_derived_tensor_is_computed_when_read_and_not_kept() -> None:
    calls = []
    store = WeightStore().with_tensor("a", torch.ones(2))
    store = store.derive("b", ("a",), lambda t: calls.append(1) or t * 2, TensorSpec((2,), torch.float32))
    assert not calls
    assert torch.equal(store.read("b"), torch.full((2,), 2.0))
    store.read("b")
    assert len(calls) == 2
    assert store.sources("b") == ("a",)


def test_memory_is_used_up_to_the_budget() -> None:
    calls: list[str] = []
    store = WeightStore()
    for name in ("first", "second"):
        spec = TensorSpec((4,), torch.float32)
        store = store.with_lazy(name, spec, lambda n=name: calls.append(n) or torch.zeros(4))
    store = store.memoised(16)
    for name in ("first", "second") * 2:
        store.read(name)
    assert calls == ["first", "second", "second"]


def test_a_derivation_that_breaks_its_word_is_caught() -> None:
    store = WeightStore().with_tensor("a", torch.ones(2, 3))
    store = store.derive("b", ("a",), lambda t: t.t(), TensorSpec((2, 3), torch.float32))
    with pytest.raises(ValueError, match="b: declared"):
        store.read("b")


def test_groups_and_zero_points() -> None:
    values = torch.tensor([[1, 2, 3, 4]], dtype=torch.int8)
    scales, zeros = torch.tensor([[1.0, 10.0]]), torch.tensor([[1, 3]], dtype=torch.int8)
    tensor = QuantizedTensor(values, scales, zeros, WeightFormat(8, 2, False))
    assert tensor.dequantize().tolist() == [[0.0, 1.0, 0.0, 10.0]]
    assert WeightFormat(4).range == (-7, 7)
    assert WeightFormat(4, symmetric=False).range == (-8, 7)
