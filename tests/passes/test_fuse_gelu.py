import math
from collections.abc import Callable

import pytest
import torch
from support import program_of
from torch import Tensor, nn

from planish_passes.fuse_gelu import FuseGelu
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret


class Of(nn.Module):
    def __init__(self, fn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x)


def tanh_form(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def erf_form(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


@pytest.mark.parametrize(("form", "approximate"), [(tanh_form, "tanh"), (erf_form, None)])
def test_written_out_gelu_is_found(form: Callable[[Tensor], Tensor], approximate: str | None) -> None:
    x = torch.randn(8, 8) * 3
    after = run_passes(program_of(Of(form), x), [FuseGelu()]).program
    assert after.count() == {"aten.gelu": 1}
    gelu = next(n for n in after.graph.nodes if n.op == "call_function")
    assert gelu.kwargs.get("approximate") == approximate
    assert torch.allclose(interpret(after, {"x0": x})["y0"], form(x), atol=1e-6)


@pytest.mark.parametrize(
    "near_miss",
    [
        lambda x: 0.5 * x * (1.0 + torch.tanh(0.8 * (x + 0.044715 * torch.pow(x, 3.0)))),
        lambda x: 0.4 * x * (1.0 + torch.erf(x / math.sqrt(2.0))),
        lambda x: 0.5 * x * (1.0 + torch.erf(x.flip(0) / math.sqrt(2.0))),
    ],
)
def test_what_only_looks_like_it_is_left_alone(near_miss: Callable[[Tensor], Tensor]) -> None:
    outcome = run_passes(program_of(Of(near_miss), torch.randn(4, 4)), [FuseGelu()])
    assert outcome.steps[0].changed == 0
