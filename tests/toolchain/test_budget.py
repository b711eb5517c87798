"""Bits where they help most, within a size."""

from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
from decoders import fused, prompt
from transformers import AutoModelForCausalLM

from planish import budget, build
from planish.budget import Budget, spend
from planish.compiled import Silent
from planish.request import Request
from planish.verdict import Failed
from planish.verify.logits import empty_cache, feed
from planish_passes.errors import PlanishError
from planish_passes.ops import dequantize
from planish_passes.program import Program
from planish_passes.quantise import Quantise
from planish_passes.rounding import round_to_nearest
from planish_passes.weights import WeightFormat

INT4 = WeightFormat(4, 32, symmetric=False)


def spent(program: Program, nbytes: int) -> dict[str, WeightFormat]:
    plan = Quantise(INT4).plan(program)
    feeds = [feed(program, prompt(1, 16), empty_cache(program))]
    wide = dict.fromkeys(plan.weights, WeightFormat(8, 32))
    return spend(program, plan, wide, Budget(nbytes, 2), feeds, Silent())


def nbytes(program: Program, formats: dict[str, WeightFormat]) -> float:
    total = 0.0
    for name, f in formats.items():
        elements = prod(program.weights.spec(name).shape)
        total += elements * f.bits / 8 + elements / (f.group or program.weights.spec(name).shape[1]) * (
            2 + (0 if f.symmetric else f.bits / 8)
        )
    return total


def least(program: Program) -> float:
    return nbytes(program, {n: f for n, (f, _) in Quantise(INT4).plan(program).weights.items()})


def exact_but(program: Program, name: str) -> Program:
    """All weights but one are on a grid of 4 bits already."""
    store = program.weights
    for other, (format, _) in Quantise(INT4).plan(program).weights.items():
        if other != name:
            rounded = round_to_nearest(store.read(other), format)
            store = store.with_tensor(other, dequantize(*rounded, torch.float32))
    return replace(program, weights=store)


def test_more_bytes_are_more_wide_weights_and_never_more_than_allowed() -> None:
    program, counts = fused("llama").program, []
    for share in (1.0, 1.2, 1.5, 2.0):
        chosen = spent(program, int(least(program) * share) + 1)
        assert nbytes(program, chosen) <= least(program) * share + 1
        counts.append(sum(f.bits == 8 for f in chosen.values()))
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == len(Quantise(INT4).plan(program).weights)


@pytest.mark.parametrize("measured_up_to", [10**9, 1])
def test_the_weight_that_four_bits_cannot_hold_gets_eight(monkeypatch: pytest.MonkeyPatch, measured_up_to: int) -> None:
    monkeypatch.setattr(budget, "MEASURED_UP_TO", measured_up_to)
    name = "model.layers.1.mlp.down_proj.weight"
    program = exact_but(fused("llama").program, name)
    room = least(program) + prod(program.weights.spec(name).shape) * 0.6
    assert [n for n, f in spent(program, int(room)).items() if f.bits == 8] == [name]


def test_linears_of_one_input_stay_alike() -> None:
    program = fused("llama").program
    chosen = spent(program, int(least(program) * 1.4))
    for layer in (0, 1):
        heads = {chosen[f"model.layers.{layer}.self_attn.{n}_proj.weight"].bits for n in "qkv"}
        gates = {chosen[f"model.layers.{layer}.mlp.{n}_proj.weight"].bits for n in ("gate", "up")}
        assert len(heads) == len(gates) == 1


def test_too_small_a_size_is_refused_with_the_size_that_is_needed() -> None:
    with pytest.raises(PlanishError, match="the weights need at least"):
        spent(fused("llama").program, 100)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from decoders import DECODERS
    from support import random_model

    folder = tmp_path_factory.mktemp("model")
    random_model(DECODERS["llama"](), AutoModelForCausalLM).save_pretrained(folder)
    return str(folder)


def test_a_compile_spends_the_bits_and_reports_them(model: str, tmp_path: Path) -> None:
    request = Request(model=model, targets=("onnxruntime",), recipe="int4", group=16, bits=6.5, rounding="search")
    result = build.compile_model(request, Silent(), tmp_path / "work")
    assert not result.failed, result.failed
    formats = {w.format.split()[0] for w in result.weights if w.format.startswith("int")}
    assert formats == {"int4", "int8"}


def test_a_size_that_files_exceed_fails_by_name(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "GRAPH", -(1 << 20))  # planted: the graph and constants are forgotten
    request = Request(model=model, targets=("onnxruntime",), recipe="int4", max_size=100_000, verify=False)
    result = build.compile_model(request, Silent(), tmp_path / "work")
    assert [v.check for _, v in result.failed if isinstance(v, Failed)] == ["size"]


def test_eight_bits_have_nothing_to_choose_from(model: str, tmp_path: Path) -> None:
    request = Request(model=model, targets=("onnxruntime",), recipe="int8", bits=4.5)
    with pytest.raises(PlanishError, match="no narrower weights"):
        build.compile_model(request, Silent(), tmp_path / "work")
