from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from support import program_of
from torch import Tensor, nn

from planish_passes.canonicalise import Canonicalise
from planish_passes.fuse_rms_norm import RMS_NORM, FuseRmsNorm
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret


class Norm(nn.Module):
    def __init__(self, fn: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...] = (8,)) -> None:
        super().__init__()
        self.weight, self.fn = nn.Parameter(torch.randn(shape)), fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x, self.weight)


def mean(x: Tensor) -> Tensor:
    return x.pow(2).mean(-1, keepdim=True)


FORMS = {
    "weight first": lambda x, w: w * (x * torch.rsqrt(mean(x) + 1e-5)),
    "weight last": lambda x, w: (torch.rsqrt(1e-5 + mean(x)) * x) * w,
    "casts": lambda x, w: w * (x.float() * torch.rsqrt((x.float() * x.float()).mean(-1, True) + 1e-5)).to(x.dtype),
    "distance from one": lambda x, w: (x * torch.rsqrt(mean(x) + 1e-5)) * (1.0 + w),
    "a power": lambda x, w: x * torch.pow(mean(x) + 1e-5, -0.5) * w,
    "a division": lambda x, w: w * (x / torch.sqrt(mean(x) + 1e-5)),
    "torch's own": lambda x, w: torch.nn.functional.rms_norm(x, (8,), w, 1e-5),
    "no weight": lambda x, w: x * torch.rsqrt(mean(x) + 1e-5),
    "no epsilon": lambda x, w: w * (x * torch.rsqrt(mean(x))),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_spelling_is_one_operator(form: str) -> None:
    x = torch.randn(2, 3, 8)
    program = run_passes(program_of(Norm(FORMS[form]), x), [Canonicalise()]).program
    outcome = run_passes(program, [FuseRmsNorm()])
    assert outcome.program.count() == {RMS_NORM: 1}
    assert not outcome.refused
    node = next(n for n in outcome.program.graph.nodes if n.op == "call_function")
    assert (node.args[1] is None) == (form == "no weight")
    assert torch.allclose(interpret(outcome.program, {"x0": x})["y0"], interpret(program, {"x0": x})["y0"], atol=1e-6)


NEAR_MISSES = {
    "subtracts the mean": lambda x, w: w * ((x - x.mean(-1, keepdim=True)) * torch.rsqrt(mean(x) + 1e-5)),
    "another axis": lambda x, w: w * (x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-5)),
    "another power": lambda x, w: w * (x * torch.rsqrt(x.pow(4).mean(-1, keepdim=True) + 1e-5)),
    "of something else": lambda x, w: w * (x * torch.rsqrt(mean(x.flip(0)) + 1e-5)),
}


@pytest.mark.parametrize("form", NEAR_MISSES)
def test_what_only_looks_like_it_is_refused(form: str) -> None:
    outcome = run_passes(program_of(Norm(NEAR_MISSES[form]), torch.randn(2, 3, 8)), [FuseRmsNorm()])
    assert outcome.steps[0].changed == 0
    assert "another form" in outcome.refused[0].reason


def test_a_weight_per_head_stays_outside() -> None:
    x = torch.randn(2, 3, 8)
    program = program_of(Norm(FORMS["weight first"], (3, 8)), x)
    after = run_passes(program, [FuseRmsNorm()]).program
    assert after.count() == {RMS_NORM: 1, "aten.mul": 1}
    assert torch.allclose(interpret(after, {"x0": x})["y0"], interpret(program, {"x0": x})["y0"], atol=1e-6)


def test_a_norm_that_a_module_promised_and_nobody_finds_is_listed_and_expected_no_more() -> None:
    program = program_of(Norm(FORMS["weight first"]), torch.randn(2, 3, 8))
    outcome = run_passes(replace(program, expects={RMS_NORM: 3}), [FuseRmsNorm()])
    assert outcome.program.expects == {RMS_NORM: 1}
    assert "2 of 3 modules" in outcome.refused[0].reason
