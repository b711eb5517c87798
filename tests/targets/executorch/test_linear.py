"""Quantised linears in XNNPACK's pattern."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import program_of
from torch import Tensor, nn

from planish_passes import pipeline
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret
from planish_passes.program import Program
from planish_passes.weights import WeightFormat
from planish_targets.executorch.linear import DynamicLinear
from planish_targets.executorch.operands import high_half, low_half


class Twice(nn.Module):
    """One weight, used by two calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.inner(torch.relu(self.inner(x))))


def quantised(activations: str, group: int = 0) -> tuple[Program, dict[str, Tensor]]:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 16)
    passes = (*pipeline.quantise(WeightFormat(8, group)), *pipeline.yardstick(torch.float32, activations))
    return run_passes(program_of(Twice(), x), passes).program, {"x0": x}


def test_pattern_computes_what_the_composite_does() -> None:
    program, feed = quantised("int8_token_asymmetric")
    outcome = run_passes(program, [DynamicLinear()])
    assert outcome.steps[0].changed == 2
    assert not outcome.refused
    counts = outcome.program.count()
    assert counts["quantized_decomposed.dequantize_per_channel"] == 2
    assert counts["planish.linear_q"] == 0
    expected, found = interpret(program, feed)["y0"], interpret(outcome.program, feed)["y0"]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_shared_weight_stays_one_weight() -> None:
    program, _ = quantised("int8_token_asymmetric")
    names = set(run_passes(program, [DynamicLinear()]).program.weights)
    own = {f"inner.weight.q_{s}" for s in ("values", "channel_scales")}
    assert names == {"inner.bias", "executorch.no_zeros_16"} | own


@pytest.mark.parametrize(
    ("activations", "group", "reason"),
    [("none", 0, "per token to asymmetric int8"), ("int8_token_asymmetric", 8, "groups of a multiple of 32")],
)
def test_other_forms_are_refused(activations: str, group: int, reason: str) -> None:
    program, _ = quantised(activations, group)
    outcome = run_passes(program, [DynamicLinear()])
    assert outcome.steps[0].changed == 0
    assert len(outcome.refused) == 2
    assert reason in outcome.refused[0].reason
    assert outcome.refused[0].module == "inner"


FORMATS = [
    WeightFormat(bits, group, symmetric) for bits in (4, 8) for group in (0, 32, 64) for symmetric in (True, False)
]


class Wide(nn.Module):
    """Two linears that read one input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(128, 64), nn.Linear(128, 32, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), self.b(x)


def wide(format: WeightFormat) -> tuple[Program, dict[str, Tensor]]:
    x = torch.randn(1, 5, 128, generator=torch.Generator().manual_seed(1))
    passes = (*pipeline.quantise(format), *pipeline.yardstick(torch.float32, "int8_token_asymmetric"))
    return run_passes(program_of(Wide(), x), passes).program, {"x0": x}


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_every_form_is_the_same_function(format: WeightFormat) -> None:
    program, feed = wide(format)
    outcome = run_passes(program, [DynamicLinear()])
    assert not outcome.refused
    torch.testing.assert_close(interpret(outcome.program, feed), interpret(program, feed), atol=1e-5, rtol=0)


def test_an_input_is_rounded_once_for_all_its_readers() -> None:
    counts = run_passes(wide(WeightFormat(4, 32, False))[0], [DynamicLinear()]).program.count()
    assert counts["quantized_decomposed.quantize_per_token"] == 1
    assert counts["aten.linear"] == 2 + 1 + 2  # products, sums over groups, zero points


def test_halves_are_the_integers() -> None:
    values = torch.arange(-128, 128, dtype=torch.int16).to(torch.int8)
    high, low = high_half(values), low_half(values)
    assert int(low.min()) == int(high.min()) == -8
    assert int(low.max()) == int(high.max()) == 7
    assert torch.equal(high.int() * 16 + low.int() + 8, values.int())


def test_scales_with_more_digits_than_the_kernel_stores_are_refused() -> None:
    program, _ = wide(WeightFormat(4, 32))
    scales = program.weights.read("a.weight.q_scales") * (1 + 2**-10)
    program = replace(program, weights=program.weights.with_tensor("a.weight.q_scales", scales))
    refused = run_passes(program, [DynamicLinear()]).refused
    assert [r.module for r in refused] == ["a"]
    assert "bfloat16" in refused[0].reason
