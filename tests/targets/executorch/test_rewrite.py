"""Rewrites for XNNPACK: text, equal outputs, refusals."""

from __future__ import annotations

from collections.abc import Callable

import torch
from support import program_of
from torch import Tensor, nn
from torch.nn import functional as F

from planish_passes.infra import Outcome, Pass, run_passes
from planish_passes.interpret import interpret
from planish_targets.executorch.rewrite import AdditiveMask, BatchMatmul, ExpandTanhGelu


class Fn(nn.Module):
    def __init__(self, fn: Callable[..., Tensor]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.fn(*tensors)


def apply(entry: Pass, fn: Callable[..., Tensor], *tensors: Tensor) -> tuple[Outcome, float]:
    """The outcome, and the largest difference that the pass makes."""
    program, inputs = program_of(Fn(fn), *tensors), {f"x{i}": t for i, t in enumerate(tensors)}
    outcome = run_passes(program, [entry])
    before, after = interpret(program, inputs), interpret(outcome.program, inputs)
    return outcome, max(float((before[k] - after[k]).abs().max()) for k in before)


def test_matmul_of_rank_4_becomes_bmm() -> None:
    a, b = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 4, 6)
    outcome, difference = apply(BatchMatmul(), torch.matmul, a, b)
    assert outcome.steps[0].changed == 1
    assert difference == 0.0
    assert outcome.program.count() == {"aten.flatten": 2, "aten.bmm": 1, "aten.unflatten": 1}


def test_matmul_of_rank_3_becomes_bmm_alone() -> None:
    a, b = torch.randn(3, 5, 4), torch.randn(3, 4, 6)
    outcome, difference = apply(BatchMatmul(), torch.matmul, a, b)
    assert difference == 0.0
    assert outcome.program.count() == {"aten.bmm": 1}


def test_matmul_that_broadcasts_is_refused() -> None:
    a, b = torch.randn(2, 3, 5, 4), torch.randn(1, 1, 4, 6)
    outcome, _ = apply(BatchMatmul(), torch.matmul, a, b)
    assert outcome.steps[0].changed == 0
    assert "not equal batches" in outcome.refused[0].reason


def _two_layers(scores: Tensor, attend: Tensor) -> Tensor:
    fill = torch.finfo(torch.float32).min
    first = torch.softmax(torch.where(attend, scores, fill), -1)
    return first + torch.softmax(torch.where(attend, scores * 3, fill), -1)


def test_mask_is_added_and_computed_once() -> None:
    scores, attend = torch.randn(2, 3, 4, 4) * 20, torch.rand(2, 1, 1, 4) > 0.5
    attend[0], attend[1, ..., :2] = False, True  # one row attends to nothing at all
    outcome, difference = apply(AdditiveMask(), _two_layers, scores, attend)
    assert outcome.steps[0].changed == 2
    assert difference == 0.0
    assert outcome.program.count()["aten.where"] == 1


def test_masked_fill_has_the_opposite_sense() -> None:
    def masked(scores: Tensor, hidden: Tensor) -> Tensor:
        return torch.softmax(scores.masked_fill(hidden, -1e9), -1)

    scores, hidden = torch.randn(2, 3, 4, 4), torch.tensor([[False, True, False, True], [False] * 4])[:, None, None]
    outcome, difference = apply(AdditiveMask(), masked, scores, hidden)
    assert outcome.steps[0].changed == 1
    assert difference == 0.0


def test_selection_that_is_no_mask_is_refused() -> None:
    def clamped(x: Tensor, keep: Tensor) -> Tensor:
        return torch.softmax(torch.where(keep, x, 0.0), -1)

    def exposed(x: Tensor, keep: Tensor) -> Tensor:
        return torch.where(keep, x, -1e9) + 1

    x, keep = torch.randn(2, 4), torch.rand(2, 4) > 0.5
    for fn, reason in ((clamped, "not a large negative number"), (exposed, "not a softmax alone")):
        outcome, _ = apply(AdditiveMask(), fn, x, keep)
        assert outcome.steps[0].changed == 0
        assert reason in outcome.refused[0].reason


def test_tanh_gelu_is_written_out() -> None:
    x = torch.linspace(-8, 8, 401)[None]
    outcome, difference = apply(ExpandTanhGelu(), lambda x: F.gelu(x, approximate="tanh"), x)
    assert outcome.steps[0].changed == 1
    assert difference <= 1e-6
    assert outcome.program.count()["aten.gelu"] == 0
    assert outcome.program.count()["aten.tanh"] == 1


def test_erf_gelu_is_left_alone() -> None:
    x = torch.randn(2, 4)
    outcome, _ = apply(ExpandTanhGelu(), F.gelu, x)
    assert outcome.steps[0].changed == 0
    assert outcome.program.count() == {"aten.gelu": 1}
