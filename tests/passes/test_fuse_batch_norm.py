import pytest
import torch
from support import capture_family, feed, program_of
from torch import Tensor, nn

from planish_passes.fuse_batch_norm import FuseBatchNorm
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret


class Block(nn.Module):
    def __init__(self, bias: bool = True, show: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.show = nn.Conv2d(3, 5, 3, bias=bias), nn.BatchNorm2d(5, eps=1e-3), show
        with torch.no_grad():
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(self.norm, name).uniform_(0.5, 2.0)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.conv(x)
        return (self.norm(y), y) if self.show else (self.norm(y),)


@pytest.mark.parametrize("bias", [True, False])
def test_the_norm_goes_into_the_convolution(bias: bool) -> None:
    torch.manual_seed(0)
    module, x = Block(bias).eval(), torch.randn(2, 3, 8, 8)
    after = run_passes(program_of(module, x), [FuseBatchNorm()]).program
    assert after.count() == {"aten.conv2d": 1}
    assert len(after.weights) == 2
    assert torch.allclose(interpret(after, {"x0": x})["y0"], module(x)[0], atol=2e-6)


def test_a_convolution_that_is_used_elsewhere_is_refused() -> None:
    outcome = run_passes(program_of(Block(show=True), torch.randn(2, 3, 8, 8)), [FuseBatchNorm()])
    assert outcome.steps[0].changed == 0
    assert "other users" in outcome.refused[0].reason


def test_a_norm_without_convolution_is_refused() -> None:
    outcome = run_passes(program_of(nn.BatchNorm1d(4), torch.randn(3, 4)), [FuseBatchNorm()])
    assert "not a convolution" in outcome.refused[0].reason


def test_a_real_class() -> None:
    captured, model = capture_family("mobilenet-v2")
    after = run_passes(captured.program, [FuseBatchNorm()])
    assert after.steps[0].changed == 52
    given = feed(captured.program)
    with torch.no_grad():
        expected = model(**given).last_hidden_state
    assert torch.allclose(interpret(after.program, given)["last_hidden_state"], expected, atol=1e-5)
