from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from support import program_of
from torch import Tensor, nn

from planish_passes.canonicalise import Canonicalise
from planish_passes.fuse_rope import FuseRope
from planish_passes.infra import Outcome, run_passes
from planish_passes.interpret import interpret
from planish_passes.program import Program

Apply = Callable[[Tensor, Tensor, Tensor], Tensor]
POSITIONS = torch.tensor([[3, 4, 5, 6, 7], [0, 1, 2, 3, 4]])


class Rotary(nn.Module):
    """x [B, H, Q, 8]; `angles` makes [B, Q, R] of positions and frequencies."""

    def __init__(self, apply: Apply, angles: Callable[[Tensor, Tensor], Tensor], axis: int = 1, width: int = 4) -> None:
        super().__init__()
        self.apply_to, self.angles, self.axis = apply, angles, axis
        self.register_buffer("frequencies", 1.0 / 10 ** torch.arange(width))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        angles = self.angles(positions[..., None].float() * self.frequencies, positions)
        return self.apply_to(x, angles.cos().unsqueeze(self.axis), angles.sin().unsqueeze(self.axis))


def twice(angles: Tensor, _: Tensor) -> Tensor:
    return torch.cat([angles, angles], dim=-1)


def repeated(angles: Tensor, _: Tensor) -> Tensor:
    return angles.repeat_interleave(2, dim=-1)


def once(angles: Tensor, _: Tensor) -> Tensor:
    return angles


def halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin


def neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * cos + torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2) * sin


def written_out(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = torch.chunk(x, 2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def partly(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.cat([halves(x[..., :4], cos, sin), x[..., 4:]], dim=-1)


def program(module: nn.Module, x: Tensor, length: int = 32) -> Program:
    made = program_of(module, x, POSITIONS)
    made = replace(made, axes={"sequence": (1, length)})
    made = replace(made, weights=made.weights.with_tensor("frequencies", made.weights.read("frequencies")))
    return run_passes(made, [Canonicalise()]).program


def fuse(made: Program) -> Outcome:
    return run_passes(made, [FuseRope("x1"), Canonicalise()])


@pytest.mark.parametrize(
    ("module", "axes"),
    [
        (Rotary(halves, twice), 1),
        (Rotary(neighbours, repeated), 1),
        (Rotary(written_out, once), 1),
        (Rotary(partly, twice, width=2), 1),
        (Rotary(neighbours, repeated, axis=2), 2),
    ],
    ids=["halves", "neighbours", "written out", "partly", "tokens before heads"],
)
def test_every_spelling_is_one_operator(module: nn.Module, axes: int) -> None:
    x = torch.randn((2, 3, 5, 8) if axes == 1 else (2, 5, 3, 8))
    before = program(module, x)
    outcome = fuse(before)
    assert outcome.program.count() == {"planish.rope": 1, **({"aten.transpose": 2} if axes == 2 else {})}
    assert not outcome.refused
    given = {"x0": x, "x1": POSITIONS}
    assert torch.allclose(interpret(outcome.program, given)["y0"], interpret(before, given)["y0"], atol=1e-6)


def test_tables_are_as_long_as_the_longest_text_and_made_when_read() -> None:
    after = fuse(program(Rotary(halves, twice), torch.randn(2, 3, 5, 8), length=1 << 40)).program
    tables = sorted(after.weight_names().values())
    assert [n.rsplit(".", 1)[-1] for n in tables] == ["cos_table", "sin_table"]
    assert after.weights.spec(tables[0]).shape == (1 << 40, 4)
    short = fuse(program(Rotary(halves, twice), torch.randn(2, 3, 5, 8))).program
    angles = torch.arange(32)[:, None] / 10 ** torch.arange(4)
    assert torch.allclose(short.weights.read(tables[0]), angles.cos(), atol=1e-6)


class Shared(Rotary):
    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        return super().forward(x, positions) + super().forward(x.flip(0), positions)


def test_equal_tables_are_stored_once() -> None:
    after = fuse(program(Shared(halves, twice), torch.randn(2, 3, 5, 8))).program
    assert after.count()["planish.rope"] == 2
    assert len(after.weight_names()) == 2


@pytest.mark.parametrize(
    "angles",
    [
        lambda a, p: twice(a * (1 + p.max()), p),
        lambda a, p: twice(a - a[:, :1], p),
    ],
    ids=["of the longest position", "of the distance to the first"],
)
def test_angles_of_more_than_a_position_are_refused(angles: Callable[[Tensor, Tensor], Tensor]) -> None:
    outcome = fuse(program(Rotary(halves, angles), torch.randn(2, 3, 5, 8)))
    assert outcome.program.count()["planish.rope"] == 0
    assert "more than a token's position" in outcome.refused[0].reason


def test_angles_of_trained_weights_are_refused() -> None:
    made = replace(program_of(Rotary(halves, twice), torch.randn(2, 3, 5, 8), POSITIONS), axes={"sequence": (1, 32)})
    assert fuse(run_passes(made, [Canonicalise()]).program).program.count()["planish.rope"] == 0


@pytest.mark.parametrize(
    "near_miss",
    [
        lambda x, cos, sin: x * cos + torch.cat([x[..., 4:], x[..., :4]], dim=-1) * sin,
        lambda x, cos, sin: x * cos + torch.cat([-x[..., :4], x[..., 4:]], dim=-1) * sin,
        lambda x, cos, sin: x * cos + torch.cat([-x[..., 4:], x[..., :4]], dim=-1).flip(0) * sin,
    ],
    ids=["no sign", "halves not exchanged", "of something else"],
)
def test_what_only_looks_like_it_is_left_and_listed(near_miss: Apply) -> None:
    outcome = fuse(program(Rotary(near_miss, twice), torch.randn(2, 3, 5, 8)))
    assert outcome.program.count()["planish.rope"] == 0
    assert "another form" in outcome.refused[0].reason
