"""Quantised once: what was written is what is read, packed where it is narrow, and never computed again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import program_of
from torch import Tensor, nn

from planish_passes import rows
from planish_passes.errors import PlanishError
from planish_passes.infra import run_passes
from planish_passes.pipeline import quantise
from planish_passes.quantise import quantized
from planish_passes.rounding import round_to_nearest
from planish_passes.settle import Shelf, settle, settle_quantised
from planish_passes.weights import TensorSpec, WeightFormat, WeightStore

WEIGHT = torch.randn(33, 64, generator=torch.Generator().manual_seed(0))
SPECS = {
    "v": TensorSpec((33, 64), torch.int8),
    "s": TensorSpec((33, 2), torch.float32),
    "z": TensorSpec((33, 2), torch.int8),
}


def store_with(calls: list[int]) -> WeightStore:
    def make(weight: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        calls.append(len(weight))
        return round_to_nearest(weight, WeightFormat(4, 32, False))

    store = WeightStore().with_tensor("w", WEIGHT).with_tensor("scalar", torch.tensor(2.5))
    return store.derive_together(SPECS, ("w",), make, by_rows=True)


def test_settled_once_and_read_many_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BLOCK", 64 * 4)
    calls: list[int] = []
    before = store_with(calls)
    store = settle(before, {"v": 4, "s": 0, "z": 4, "scalar": 0}, tmp_path / "new")
    assert sum(calls) == 33
    for _ in range(2):
        for name, whole in zip(SPECS, round_to_nearest(WEIGHT, WeightFormat(4, 32, False)), strict=True):
            assert whole is not None
            assert torch.equal(store.read(name), whole)
            assert torch.equal(store.rows(name, 7, 20), whole[7:20])
            assert torch.equal(torch.cat(list(store.blocks(name))), whole)
            assert store.sources(name) == before.sources(name)
    assert float(store.read("scalar")) == 2.5
    assert sum(calls) == 33
    assert (tmp_path / "new/weights.bin").stat().st_size == 33 * 32 + 33 * 2 * 4 + 33 + 4


def test_threads_are_given_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    settle(store_with([]), {"v": 4}, tmp_path)
    assert torch.get_num_threads() == before


def test_every_quantised_weight_of_a_program_is_settled(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(40, 64), nn.Linear(64, 32))
    program = run_passes(program_of(model, torch.zeros(2, 3, dtype=torch.int64)), quantise(WeightFormat(4, 32))).program
    settled = settle_quantised(program, tmp_path)
    assert (tmp_path / "weights.bin").stat().st_size == (40 + 32) * (32 + 2 * 4)
    truth = quantized(program)
    assert len(truth) == 2
    for name, found in quantized(settled).items():
        assert torch.equal(found.values, truth[name].values)
        assert torch.equal(found.scales, truth[name].scales)


def test_results_of_a_calibration_can_be_put_aside(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    values = torch.randint(-8, 8, (5, 7), dtype=torch.int8)
    shelf.put("v", values, 4)
    shelf.put("f", WEIGHT.half())
    store = shelf.onto(WeightStore())
    assert torch.equal(store.read("v"), values)
    assert torch.equal(store.rows("f", 2, 4), WEIGHT.half()[2:4])


def test_integers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    store = WeightStore().with_tensor("v", torch.tensor([[-8, 8]], dtype=torch.int8))
    with pytest.raises(ValueError, match=r"v: integers -8\.\.8 do not fit into 4 bits"):
        settle(store, {"v": 4}, tmp_path)


def test_a_weight_that_cannot_be_quantised_is_named(tmp_path: Path) -> None:
    def make(weight: Tensor) -> Tensor:
        return round_to_nearest(weight, WeightFormat(8)).values

    spoiled = WEIGHT.clone()
    spoiled[3, 3] = torch.nan
    store = WeightStore().with_tensor("w", spoiled)
    store = store.derive("w.q", ("w",), make, TensorSpec((33, 64), torch.int8), by_rows=True)
    with pytest.raises(PlanishError, match=r"where: w\.q: "):
        settle(store, {"w.q": 8}, tmp_path)


def test_scratch_data_that_is_gone_or_cut_short_is_refused(tmp_path: Path) -> None:
    store = settle(store_with([]), {"v": 4, "s": 0}, tmp_path)
    path = tmp_path / "weights.bin"
    path.write_bytes(path.read_bytes()[:-1])
    assert store.rows("v", 0, 2).shape == (2, 64)
    with pytest.raises(PlanishError, match="s is gone or cut short"):
        store.read("s")
    path.unlink()
    with pytest.raises(PlanishError, match="v is gone or cut short"):
        store.read("v")
