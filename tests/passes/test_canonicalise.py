import torch
from support import program_of
from torch import Tensor, nn

from planish_passes.canonicalise import Canonicalise
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(x).to(torch.float32).contiguous()  # dropout, cast, contiguous
        x = x.transpose(0, 1).transpose(0, 1)  # a pair that cancels
        x = x[0:4].expand(4, 6)  # slice and expand that change nothing
        return x.view(2, 12) * 2


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        alias = y.view(-1)
        alias.add_(1)  # changes y too
        return y


def test_no_ops_go_and_the_result_stays() -> None:
    x = torch.randn(4, 6)
    program = program_of(Noisy(), x)
    after = run_passes(program, [Canonicalise()]).program
    assert [n.name for n in after.graph.nodes if n.op == "call_function"] == ["view", "mul"]
    assert after.count() == {"aten.reshape": 1, "aten.mul": 1}
    assert torch.equal(interpret(after, {"x0": x})["y0"], x.view(2, 12) * 2)


def test_the_program_before_is_left_as_it_was() -> None:
    program = program_of(Noisy(), torch.randn(4, 6))
    text = program.text()
    run_passes(program, [Canonicalise()])
    assert program.text() == text


def test_a_write_through_a_view_becomes_functional() -> None:
    x = torch.randn(2, 3)
    after = run_passes(program_of(InPlace(), x), [Canonicalise()]).program
    assert "aten.add_" not in after.count()
    assert torch.equal(interpret(after, {"x0": x})["y0"], x * 2 + 1)


def test_calls_that_write_may_be_put_in_behind_it() -> None:
    """Targets do: kernels that write caches."""
    program = run_passes(program_of(InPlace(), torch.randn(2, 3)), [Canonicalise()]).program.copy()
    last = program.graph.output_node()
    with program.graph.inserting_before(last):
        source = last.all_input_nodes[0]
        call = program.graph.call_function(torch.ops.aten.add_.Scalar, (source, 1))
        call.meta["val"] = source.meta["val"]
    assert "aten.add_" in program.copy().count()


def test_a_transpose_that_does_not_cancel_stays() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.transpose(0, 1).transpose(1, 2)

    after = run_passes(program_of(Twice(), torch.randn(2, 3, 4)), [Canonicalise()])
    assert after.program.count()["aten.transpose"] == 2
    assert after.steps[0].changed == 0


class FromOne(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1.0 - x


def test_integers_that_are_taken_from_a_float_are_cast_first() -> None:
    x = torch.tensor([0, 1, 1])
    after = run_passes(program_of(FromOne(), x), [Canonicalise()]).program
    assert after.count() == {"aten.to": 1, "aten.rsub": 1}
    assert torch.equal(interpret(after, {"x0": x})["y0"], 1.0 - x)
    floats = run_passes(program_of(FromOne(), x.float()), [Canonicalise()]).program
    assert floats.count() == {"aten.rsub": 1}
