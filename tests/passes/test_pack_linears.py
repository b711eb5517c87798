"""Linears of one input in one product: the same integers, the same results."""

from dataclasses import replace

import pytest
import torch
from decoders import empty, fused, prompt

from planish_passes import pipeline
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret
from planish_passes.match import is_op
from planish_passes.pack_linears import PACKED
from planish_passes.program import Program
from planish_passes.quantise import MINIMA, VALUES, Quantise
from planish_passes.weights import WeightFormat


def quantised(family: str, format: WeightFormat) -> Program:
    return run_passes(fused(family).program, pipeline.quantise(format)).program


def logits(program: Program) -> torch.Tensor:
    tokens = prompt(batch=1, length=6)
    return interpret(program, {"input_ids": tokens, "position_ids": torch.arange(6)[None], **empty(program, 1)})[
        "logits"
    ]


@pytest.mark.parametrize("format", [WeightFormat(4, 16, symmetric=False), WeightFormat(8, 16)])
def test_queries_keys_values_and_gate_up_are_one_product_each(format: WeightFormat) -> None:
    apart = quantised("llama", format)
    packed = run_passes(apart, pipeline.packed()).program
    assert apart.count()["planish.linear_q"] == 15  # two layers of seven, and the head
    assert packed.count()["planish.linear_q"] == 9
    assert torch.allclose(logits(packed), logits(apart), rtol=0, atol=1e-5)
    name = next(n for n in packed.weights if n.count(PACKED) == 2 and n.endswith(VALUES))
    parts = [n + VALUES for n in name.removesuffix(VALUES).split(PACKED)]
    assert torch.equal(packed.weights.read(name), torch.cat([apart.weights.read(n) for n in parts]))


def test_one_scale_per_channel_stays_apart() -> None:
    apart = quantised("llama", WeightFormat(8))
    assert run_passes(apart, pipeline.packed()).program.count() == apart.count()


def with_minima() -> Program:
    """Every weight in groups of 16 with a minimum each, as some checkpoints have them."""
    program = fused("llama").program
    formats = {name: format for name, (format, _) in Quantise(WeightFormat(4, 16)).plan(program).weights.items()}
    store = program.weights
    for name in formats:
        rows, columns = store.spec(name).shape
        store = store.with_tensor(name + MINIMA, torch.linspace(-1, 1, rows * columns // 16).view(rows, -1))
    return run_passes(replace(program, weights=store), (Quantise(None, formats),)).program


def test_minima_are_packed_as_well() -> None:
    apart = with_minima()
    packed = run_passes(apart, pipeline.packed()).program
    assert (apart.count()["planish.linear_minima"], packed.count()["planish.linear_minima"]) == (15, 9)
    assert packed.count()["planish.linear_q"] == 9
    assert torch.allclose(logits(packed), logits(apart), rtol=0, atol=1e-4)
    name = next(n for n in packed.weights if n.count(PACKED) == 2 and n.endswith(MINIMA))
    parts = [n + MINIMA for n in name.removesuffix(MINIMA).split(PACKED)]
    assert torch.equal(packed.weights.read(name), torch.cat([apart.weights.read(n) for n in parts]))


def test_what_has_minima_and_what_has_none_stay_apart() -> None:
    program = with_minima()
    node = next(n for n in program.graph.nodes if is_op(n, "aten.add") and is_op(n.args[1], "planish.linear_minima"))
    node.replace_all_uses_with(node.args[0])
    packed = run_passes(program, pipeline.packed()).program
    assert packed.count()["planish.linear_q"] == 10
