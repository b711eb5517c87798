"""Inputs of quantised linears in two int8 passes."""

from __future__ import annotations

import pytest
import torch
from support import program_of
from torch import Tensor, nn

from planish_passes import pipeline
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret
from planish_passes.program import Program
from planish_passes.weights import WeightFormat
from planish_targets.executorch import pairs
from planish_targets.executorch.linear import SINGLE, DynamicLinear
from planish_targets.executorch.pairs import PAIR

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


def wide(format: WeightFormat, activations: str = PAIR, *sizes: int) -> tuple[Program, dict[str, Tensor]]:
    x = torch.randn(*(sizes or (1, 5)), 128, generator=torch.Generator().manual_seed(1))
    passes = (*pipeline.quantise(format), *pipeline.yardstick(torch.float32, activations))
    return run_passes(program_of(Wide(), x), passes).program, {"x0": x}


def error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    return max(float((found[n] - wanted[n]).abs().max() / wanted[n].abs().max()) for n in wanted)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_every_form_is_the_composite(format: WeightFormat) -> None:
    program, feed = wide(format)
    outcome = run_passes(program, [DynamicLinear()])
    assert not outcome.refused
    assert error(interpret(outcome.program, feed), interpret(program, feed)) < 5e-5


def test_two_passes_lose_a_hundredth_of_what_one_loses() -> None:
    format = WeightFormat(4, 32, False)
    truth = interpret(*wide(format, "none"))
    one, two = (error(interpret(*wide(format, a)), truth) for a in (SINGLE, PAIR))
    assert two < one / 100


def test_rows_without_the_ends_of_their_range_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    program, feed = wide(WeightFormat(4, 32, False))
    monkeypatch.setattr(pairs, "_ENDS", ((100.0, -128.0), (1.0, 0.0)))
    wrong = run_passes(program.copy(), [DynamicLinear()]).program
    assert error(interpret(wrong, feed), interpret(program, feed)) > 2e-4


def test_an_input_is_rounded_once_for_all_its_readers() -> None:
    counts = run_passes(wide(WeightFormat(4, 32, False))[0], [DynamicLinear()]).program.count()
    assert counts["quantized_decomposed.quantize_per_token"] == 1
    assert counts["aten.linear"] == 1 + 1 + 2 + 2  # bound, sums over groups, products, zero points


@pytest.mark.parametrize("sizes", [(5,), (2, 3), (1, 2, 3)])
def test_the_result_has_the_sizes_of_the_input(sizes: tuple[int, ...]) -> None:
    program, feed = wide(WeightFormat(4, 32, False), PAIR, *sizes)
    found = interpret(run_passes(program, [DynamicLinear()]).program, feed)
    assert found["y0"].shape == (*sizes, 64)
    assert error(found, interpret(program, feed)) < 5e-5


def test_a_token_of_zeros_stays_finite() -> None:
    program, feed = wide(WeightFormat(4, 32, False))
    zeros = {"x0": torch.zeros_like(feed["x0"])}
    found = interpret(run_passes(program, [DynamicLinear()]).program, zeros)
    torch.testing.assert_close(found, interpret(program, zeros), atol=1e-6, rtol=0)


def test_too_few_channels_are_refused() -> None:
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x)

    passes = (*pipeline.quantise(WeightFormat(8)), *pipeline.yardstick(torch.float32, PAIR))
    program = run_passes(program_of(Narrow(), torch.randn(1, 3, 2)), passes).program
    refused = run_passes(program, [DynamicLinear()]).refused
    assert [r.reason for r in refused] == ["two channels are too few for two passes"]
