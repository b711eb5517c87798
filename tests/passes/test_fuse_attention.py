import torch
from support import capture_family, feed, program_of
from torch import Tensor, nn

from planish_passes.canonicalise import Canonicalise
from planish_passes.fuse_attention import FuseAttention
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret


class Plain(nn.Module):
    def __init__(self, axis: int = -1, show: bool = False) -> None:
        super().__init__()
        self.axis, self.show = axis, show

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        scores = q @ k.transpose(-1, -2) / 2.0 + bias
        out = torch.softmax(scores, dim=self.axis) @ v
        return (out, scores) if self.show else (out,)


def inputs() -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    return (*(torch.randn(2, 4, 6, 8) for _ in range(3)), torch.randn(1, 4, 6, 6))


def test_plain_attention_with_bias_becomes_one_operator() -> None:
    given = inputs()
    program = program_of(Plain(), *given)
    after = run_passes(program, [FuseAttention(), Canonicalise()]).program
    assert after.count() == {"planish.attention": 1, "aten.transpose": 1}
    names = {f"x{i}": t for i, t in enumerate(given)}
    assert torch.allclose(interpret(after, names)["y0"], interpret(program, names)["y0"], atol=1e-6)


def test_another_softmax_axis_is_refused() -> None:
    outcome = run_passes(program_of(Plain(axis=1), *inputs()), [FuseAttention()])
    assert outcome.steps[0].changed == 0
    assert "axis 1" in outcome.refused[0].reason


def test_scores_that_are_used_elsewhere_are_refused() -> None:
    outcome = run_passes(program_of(Plain(show=True), *inputs()), [FuseAttention()])
    assert outcome.steps[0].changed == 0
    assert "other uses" in outcome.refused[0].reason


def test_a_model_that_bypasses_the_interface_is_fused() -> None:
    captured, model = capture_family("mpnet")
    after = run_passes(captured.program, [Canonicalise(), FuseAttention(), Canonicalise()]).program
    assert after.count()["planish.attention"] == 2
    given = feed(after)
    with torch.no_grad():
        expected = model(**given).last_hidden_state
    assert (interpret(after, given)["last_hidden_state"] - expected).abs().max() < 2e-6
