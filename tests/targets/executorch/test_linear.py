"""Quantised linears in XNNPACK's pattern."""

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
from planish_targets.executorch.linear import DynamicLinear


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
    assert names == {"inner.bias"} | {f"inner.weight.q_{s}" for s in ("values", "channel_scales", "zeros")}


@pytest.mark.parametrize(
    ("activations", "group", "reason"),
    [("none", 0, "per token to asymmetric int8"), ("int8_token_asymmetric", 8, "one scale per output channel")],
)
def test_other_forms_are_refused(activations: str, group: int, reason: str) -> None:
    program, _ = quantised(activations, group)
    outcome = run_passes(program, [DynamicLinear()])
    assert outcome.steps[0].changed == 0
    assert len(outcome.refused) == 2
    assert reason in outcome.refused[0].reason
    assert outcome.refused[0].module == "inner"
