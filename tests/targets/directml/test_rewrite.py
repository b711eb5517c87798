"""Forms that float16 survives: factors before products, and GELU in the form that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import program_of
from torch import Tensor, nn

from planish_passes.infra import run_passes
from planish_passes.interpret import interpret
from planish_passes.program import Program
from planish_targets.directml.rewrite import ScaleFirst


def scores(kind: str) -> Program:
    class Scores(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            product = torch.matmul(a, b)
            if kind == "read twice":
                return product * 0.5 + product
            factor = {"mul": 0.125, "enlarges": 8.0, "tensor": a}.get(kind)
            return product / 8.0 if kind == "div" else product * factor

    return program_of(Scores(), torch.randn(4, 4), torch.randn(4, 4))


@pytest.mark.parametrize("kind", ["mul", "div"])
def test_the_factor_moves_to_the_left_operand(kind: str) -> None:
    before = scores(kind)
    outcome = run_passes(before, [ScaleFirst()])
    calls = [line for line in outcome.program.text().splitlines() if "aten" in line]
    assert outcome.steps[0].changed == 1
    assert [c.split(" = ")[1].split("(")[0] for c in calls] == [f"aten.{kind}", "aten.matmul"]
    assert f"aten.{kind}(%a, {0.125 if kind == 'mul' else 8.0})" in calls[0]
    feed = {"x0": torch.randn(4, 4), "x1": torch.randn(4, 4)}
    assert torch.equal(interpret(before, feed)["y0"], interpret(outcome.program, feed)["y0"])  # powers of two: exact


@pytest.mark.parametrize("kind", ["read twice", "enlarges", "tensor"])
def test_other_products_are_left_alone(kind: str) -> None:
    before = scores(kind)
    outcome = run_passes(before, [ScaleFirst()])
    assert outcome.steps[0].changed == 0
    assert outcome.program.text() == before.text()


def test_large_scores_stay_in_the_range_of_float16() -> None:
    """q.k = 160000 before the factor, 2500 behind it."""
    before = scores("mul")
    feed = {"x0": torch.full((4, 4), 400.0), "x1": torch.full((4, 4), 100.0)}
    assert interpret(before, feed, round_to=torch.float16)["y0"].isinf().all()
    after = run_passes(before, [ScaleFirst()]).program
    assert torch.equal(interpret(after, feed, round_to=torch.float16)["y0"], torch.full((4, 4), 20000.0))


@pytest.mark.parametrize(("form", "op"), [("none", "Gelu"), ("tanh", "Tanh")])
def test_gelu_is_the_form_that_was_asked_for(form: str, op: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from planish_targets.directml.lower import write
    from planish_targets.directml.run import open_artifact
    from planish_targets.serve import Call

    class Feed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.gelu(self.linear(x), approximate=form)

    program = program_of(Feed(), torch.randn(3, 4))
    write(program, tmp_path / "model.onnx")
    ops = {n.op_type for n in onnx.load(tmp_path / "model.onnx").graph.node}
    assert op in ops
    assert not ops & {"FastGelu", "Erf"}
    feed = {"x0": torch.randn(3, 4)}
    found = open_artifact(Call(tmp_path / "model.onnx", {}, 1))(feed)["y0"]
    torch.testing.assert_close(found, interpret(program, feed)["y0"], atol=2e-3, rtol=2e-3)
