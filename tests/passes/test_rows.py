"""Tensors in row blocks: the same values as in one piece, in bounded memory, computed once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from planish_passes import rows
from planish_passes.rounding import round_to_nearest
from planish_passes.weights import TensorSpec, WeightFormat, WeightStore

WEIGHT = torch.randn(37, 64, generator=torch.Generator().manual_seed(0))
FORMAT = WeightFormat(4, 32, False)
PARTS = {
    "v": TensorSpec((37, 64), torch.int8),
    "s": TensorSpec((37, 2), torch.float32),
    "z": TensorSpec((37, 2), torch.int8),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BLOCK", 64 * 5)  # 5 rows: 37 rows are 8 blocks, the last one short


def source(asked: list[tuple[int, int]] | None = None) -> WeightStore:
    """A store with "w", which notes which rows are asked for."""
    log = [] if asked is None else asked

    def read(start: int, stop: int) -> Tensor:
        log.append((start, stop))
        return WEIGHT[start:stop]

    return WeightStore().with_lazy("w", TensorSpec.of(WEIGHT), lambda: read(0, 37), ("w",), read)


def quantised(calls: list[int], store: WeightStore | None = None) -> WeightStore:
    def make(weight: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        calls.append(len(weight))
        return round_to_nearest(weight, FORMAT)

    return (store or source()).derive_together(PARTS, ("w",), make, by_rows=True)


def test_blocks_cover_the_tensor_and_hold_its_values() -> None:
    store = quantised([])
    for name, whole in zip(PARTS, round_to_nearest(WEIGHT, FORMAT), strict=True):
        assert whole is not None
        assert torch.equal(torch.cat(list(store.blocks(name))), whole)
        assert torch.equal(store.read(name), whole)
        assert torch.equal(store.rows(name, 3, 19), whole[3:19])
        assert store.spans(name) == store.spans("v")
        assert max(stop - start for start, stop in store.spans(name)) == 5


def test_parts_of_one_block_are_computed_once() -> None:
    calls: list[int] = []
    store = quantised(calls)
    for start, stop in store.spans("v"):
        for name in PARTS:
            store.rows(name, start, stop)
    assert sum(calls) == 37
    calls.clear()
    for name in PARTS:
        store.read(name)
    assert sum(calls) == 37
    assert max(calls) == 5  # a whole is made of blocks as well


def test_what_was_kept_of_other_rows_is_not_handed_out() -> None:
    store, (_, scales, _) = quantised([]), round_to_nearest(WEIGHT, FORMAT)
    store.rows("v", 0, 5)
    assert torch.equal(store.rows("s", 5, 10), scales[5:10])


def test_only_the_rows_that_are_needed_are_read() -> None:
    asked: list[tuple[int, int]] = []
    store = source(asked).derive("double", ("w",), lambda t: t * 2, TensorSpec.of(WEIGHT), by_rows=True)
    store = store.concatenate("both", ("double", "w"))
    assert torch.equal(store.rows("both", 35, 40), torch.cat([WEIGHT * 2, WEIGHT])[35:40])
    assert asked == [(35, 37), (0, 3)]
    assert torch.equal(store.read("both"), torch.cat([WEIGHT * 2, WEIGHT]))


def test_a_source_that_comes_as_a_whole_is_read_once() -> None:
    reads: list[int] = []
    store = WeightStore().with_lazy("w", TensorSpec.of(WEIGHT), lambda: reads.append(1) or WEIGHT, ("w",))
    calls: list[int] = []
    store = quantised(calls, store).concatenate("vv", ("v", "v"))
    assert store.spans("v") == ((0, 37),)
    assert store.spans("vv") == ((0, 74),)
    for name in PARTS:
        list(store.blocks(name))
    assert (len(reads), calls) == (1, [37])


def test_memoised_rows_come_from_memory() -> None:
    calls: list[int] = []
    store = quantised(calls).memoised(1 << 20)
    whole = store.read("v")
    calls.clear()
    assert torch.equal(store.rows("v", 4, 9), whole[4:9])
    assert not calls


@pytest.mark.parametrize(
    "fn", [lambda t: t[:-1], lambda t: t.double(), lambda t: t[:, :1], lambda t: (None,)], ids=range(4)
)
def test_a_derivation_by_rows_that_breaks_its_word_is_caught(fn: Callable[[Tensor], Tensor]) -> None:
    store = source().derive("b", ("w",), fn, TensorSpec.of(WEIGHT), by_rows=True)
    with pytest.raises(ValueError, match="b: declared"):
        store.read("b")


def test_scalars_and_empty_tensors() -> None:
    store = WeightStore().with_tensor("one", torch.tensor(3.0)).with_tensor("none", torch.empty(0, 4))
    assert [float(b) for b in store.blocks("one")] == [3.0]
    assert list(store.blocks("none")) == []
    assert store.rows("none", 0, 0).shape == (0, 4)
    half = store.derive("half", ("one",), lambda t: t / 2, TensorSpec((), torch.float32), by_rows=True)
    assert float(half.read("half")) == 1.5
