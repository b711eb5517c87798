from collections.abc import Callable

import pytest
import torch
from support import program_of
from torch import Tensor, nn
from torch.nn import functional as F

from planish_passes.fuse_gated import FuseGated
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret


class Of(nn.Module):
    def __init__(self, fn: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.fn, self.up, self.gate = fn, nn.Linear(4, 6), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.gate(x), self.up(x))


FORMS = {
    "silu": lambda g, u: F.silu(g) * u,
    "gelu": lambda g, u: u * F.gelu(g),
    "gelu_tanh": lambda g, u: F.gelu(g, approximate="tanh") * u,
    "relu": lambda g, u: F.relu(g) * u,
}


@pytest.mark.parametrize("activation", FORMS)
def test_activation_times_up_is_one_operator(activation: str) -> None:
    x = torch.randn(2, 3, 4)
    program = program_of(Of(FORMS[activation]), x)
    after = run_passes(program, [FuseGated()]).program
    assert after.count() == {"aten.linear": 2, "planish.gated": 1}
    assert next(n for n in after.graph.nodes if "gated" in str(n.target)).args[2] == activation
    assert torch.equal(interpret(after, {"x0": x})["y0"], interpret(program, {"x0": x})["y0"])


@pytest.mark.parametrize(
    "near_miss",
    [
        lambda g, u: F.silu(g) * u[..., :1],
        lambda g, u: F.silu(g) * 2.0,
        lambda g, u: (lambda s: s * u + s.sum())(F.silu(g)),
        lambda g, u: torch.tanh(g) * u,
    ],
    ids=["another shape", "a number", "activation also used elsewhere", "another activation"],
)
def test_what_only_looks_like_it_is_left_alone(near_miss: Callable[[Tensor, Tensor], Tensor]) -> None:
    outcome = run_passes(program_of(Of(near_miss), torch.randn(2, 3, 4)), [FuseGated()])
    assert outcome.steps[0].changed == 0
