from collections.abc import Callable

import pytest
import torch
from support import program_of
from torch import Tensor, nn

from planish_passes.positional import Table, table_of
from planish_passes.program import Program


class Of(nn.Module):
    def __init__(self, fn: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.fn = fn
        self.register_buffer("constant", torch.tensor([1.0, 0.5]))

    def forward(self, positions: Tensor, other: Tensor) -> Tensor:
        return self.fn(positions, self.constant, other) + other.sum()  # type: ignore[arg-type]


def table(fn: Callable[[Tensor, Tensor, Tensor], Tensor], *, trained: bool = False) -> Table | None:
    program: Program = program_of(Of(fn), torch.arange(5).expand(2, -1), torch.randn(2, 5, 2))
    if not trained and "constant" in program.weights:
        from dataclasses import replace

        program = replace(program, weights=program.weights.with_tensor("constant", program.weights.read("constant")))
    added = program.graph.output_node().args[0][0]  # type: ignore[index]
    return table_of(program, added.args[0], "x0", 64)  # type: ignore[union-attr, arg-type]


def angles(positions: Tensor, constant: Tensor, _: Tensor) -> Tensor:
    return (positions[..., None].float() * constant).cos()


def test_rows_of_positions() -> None:
    found = table(angles)
    assert found is not None
    at = torch.tensor([7, 0, 63])
    assert torch.equal(found(at), (at[:, None] * torch.tensor([1.0, 0.5])).cos())


def test_equal_graphs_have_equal_keys_and_other_ones_have_not() -> None:
    first, again = table(angles), table(angles)
    other = table(lambda p, c, o: (p[..., None].float() * c).sin())
    scaled = table(lambda p, c, o: (p[..., None].float() * c * 2.0).cos())
    assert first is not None
    assert again is not None
    assert other is not None
    assert scaled is not None
    assert first.key == again.key
    assert len({first.key, other.key, scaled.key}) == 3


@pytest.mark.parametrize(
    "fn",
    [
        lambda p, c, o: p[..., None].float() * c * o,
        lambda p, c, o: (p - p[:, :1])[..., None].float() * c,
        lambda p, c, o: p[..., None].float() * c / p.max(),
        lambda p, c, o: torch.arange(5)[None, :, None].float() * c,
    ],
    ids=["another input", "first position", "longest position", "not the positions"],
)
def test_what_depends_on_more_is_no_table(fn: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    assert table(fn) is None


def test_trained_weights_make_no_table() -> None:
    assert table(angles, trained=True) is None
