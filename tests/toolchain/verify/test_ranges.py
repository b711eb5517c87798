"""The activation-range audit, and the overflow that it foresees."""

from __future__ import annotations

import torch
from support import program_of
from torch import Tensor, nn

from planish.verify.ranges import audit
from planish_passes.decoder_ops import rms_norm
from planish_passes.expand import Expand
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret

HALF = 65504.0


class Normed(nn.Module):
    """A residual sum and its norm."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.ops.planish.rms_norm(x + y, None, 1e-6)


def test_peaks_and_squares_of_every_value_are_found() -> None:
    assert rms_norm is not None  # registers the operator
    x = torch.zeros(1, 3, 4)
    x[0, 1] = torch.tensor([3.0, -20.0, 0.0, 1.0])
    found = audit(program_of(Normed(), x, x.clone()), {"x0": x, "x1": torch.zeros_like(x)})
    assert set(found) == {"add", "rms_norm"}
    assert found["add"] == (20.0, (9 + 400 + 1) / 4)


def test_an_empty_value_and_a_broken_one() -> None:
    program = program_of(Normed(), torch.zeros(2, 4), torch.zeros(2, 4))
    assert audit(program, {"x0": torch.zeros(0, 4), "x1": torch.zeros(0, 4)}) == {}
    broken = audit(program, {"x0": torch.full((2, 4), float("nan")), "x1": torch.zeros(2, 4)})
    assert broken["add"].peak == float("inf")


def test_a_sum_that_fits_into_half_may_have_a_norm_that_does_not() -> None:
    """Rule 15: one element of 22,552 in a row of 576, as in SmolLM2."""
    x = torch.randn(1, 2, 576, generator=torch.Generator().manual_seed(0))
    x[0, 0, 7] = 22552.0
    program = program_of(Normed(), x, x.clone())
    given = {"x0": x, "x1": torch.zeros_like(x)}
    seen = audit(program, given)["add"]
    assert seen.peak < HALF < seen.mean_square
    wanted = interpret(program, given)["y0"]
    whole = interpret(program, given, round_to=torch.float16)["y0"]  # the norm itself computes in float32
    torch.testing.assert_close(whole, wanted, rtol=1e-2, atol=1e-2)
    written_out = run_passes(program, (Expand(),)).program
    halved = interpret(written_out, given, round_to=torch.float16)["y0"]  # each step of it in float16
    assert float(halved[0, 0].abs().max()) == 0.0  # x / sqrt(inf)
    torch.testing.assert_close(halved[0, 1], wanted[0, 1], rtol=1e-2, atol=1e-2)
