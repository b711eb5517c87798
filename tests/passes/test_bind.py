import torch
from support import program_of
from torch import Tensor, nn

from planish_passes.bind import bind
from planish_passes.canonicalise import Canonicalise
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret


class Sum(nn.Module):
    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return x + 2 * y + 3 * z


def test_inputs_become_constants_and_the_rest_stays() -> None:
    x, y, z = (torch.randn(3) for _ in range(3))
    program = program_of(Sum(), x, y, z)
    bound = bind(program, {"x1": y, "other": z})
    assert [p.name for p in bound.inputs] == ["x0", "x2"]
    assert torch.equal(interpret(bound, {"x0": x, "x2": z})["y0"], x + 2 * y + 3 * z)
    assert [p.name for p in program.inputs] == ["x0", "x1", "x2"]
    assert torch.equal(interpret(program, {"x0": x, "x1": z, "x2": y})["y0"], x + 2 * z + 3 * y)


def test_passes_run_on_what_is_bound() -> None:
    x = torch.randn(3)
    bound = run_passes(bind(program_of(Sum(), x, x, x), {"x0": x, "x1": x, "x2": x}), [Canonicalise()]).program
    assert torch.allclose(interpret(bound, {})["y0"], 6 * x)


def test_nothing_to_bind_changes_nothing() -> None:
    program = program_of(Sum(), *[torch.randn(3)] * 3)
    assert bind(program, {"other": torch.zeros(1)}) is program
