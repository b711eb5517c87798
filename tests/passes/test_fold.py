import torch
from support import program_of
from torch import Tensor, nn

from planish_passes.canonicalise import Canonicalise
from planish_passes.fold import FoldConstants
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(4).to(torch.float32) / 3
        return self.linear(x) + torch.sin(positions) + self.linear.weight.sum()


def test_constants_fold_and_trained_weights_do_not() -> None:
    module, x = Table(), torch.randn(2, 4)
    program = program_of(module, x)
    outcome = run_passes(program, [Canonicalise(), FoldConstants()])
    assert outcome.steps[1].changed == 1
    assert "aten.sin" not in outcome.program.count()
    assert outcome.program.count()["aten.sum"] == 1
    assert torch.equal(interpret(outcome.program, {"x0": x})["y0"], module(x))


def test_weights_fold_on_request() -> None:
    module, x = Table(), torch.randn(2, 4)
    after = run_passes(program_of(module, x), [FoldConstants(weights=True)]).program
    assert "aten.sum" not in after.count()
    assert torch.equal(interpret(after, {"x0": x})["y0"], module(x))


def test_results_that_are_too_large_stay_computed() -> None:
    outcome = run_passes(program_of(Table(), torch.randn(2, 4)), [FoldConstants(largest=3)])
    assert outcome.program.count()["aten.sin"] == 1
