"""Finding epsilons in a graph, whatever its format."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support import program_of
from torch import Tensor, nn
from torch.nn import functional as F

from planish_targets.attributes import ADD, NORM, OTHER, ROOT, SAME, Number, Step, epsilons, fx_number, fx_steps

NUMBERS = {"eps": Number(1e-6)}


def found(*steps: Step) -> list[float]:
    return [n.value for _, n in epsilons(steps, NUMBERS.get)]


def test_a_norm_states_its_own() -> None:
    assert found(Step(NORM, "LayerNormalization", ("x",), "y", epsilon=Number(1e-5))) == [1e-5]


def test_a_constant_that_is_added_before_a_root_is_one_in_any_order_and_through_moves() -> None:
    add = Step(ADD, "Add", ("eps.moved", "x"), "sum")
    moved = Step(SAME, "Cast", ("eps",), "eps.moved")
    cast = Step(SAME, "Cast", ("sum",), "sum.cast")
    assert found(Step(ROOT, "Sqrt", ("sum.cast",), "y"), cast, add, moved) == [1e-6]


def test_two_roots_of_one_sum_are_one_epsilon() -> None:
    roots = [Step(ROOT, "Sqrt", ("sum",), name) for name in "ab"]
    assert found(Step(ADD, "Add", ("x", "eps"), "sum"), *roots) == [1e-6]


@pytest.mark.parametrize(
    "steps",
    [
        (Step(ADD, "Add", ("x", "eps"), "sum"),),
        (Step(ADD, "Add", ("x", "eps"), "sum"), Step(OTHER, "Exp", ("sum",), "y")),
        (Step(ADD, "Add", ("x", "x2"), "sum"), Step(ROOT, "Sqrt", ("sum",), "y")),
    ],
    ids=["no root", "no root but another reader", "no constant"],
)
def test_other_sums_are_none(steps: tuple[Step, ...]) -> None:
    assert found(*steps) == []


class Function(nn.Module):
    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("tiny", torch.tensor([5e-6]))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * self.tiny


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (lambda x: F.layer_norm(x, [8], eps=1e-12), [1e-12]),
        (lambda x: F.layer_norm(x, [8]), [1e-5]),
        (lambda x: F.group_norm(x, 2, eps=2e-5), [2e-5]),
        (lambda x: F.rms_norm(x, [8], eps=3e-6), [3e-6]),
        (lambda x: F.rms_norm(x, [8]), [torch.finfo(torch.float32).eps]),
        (lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 4e-6), [4e-6]),
        (lambda x: x / torch.sqrt(x.var(-1, keepdim=True) + 4e-6), [4e-6]),
        (lambda x: x * (x.pow(2).mean(-1, keepdim=True) + 4e-6).pow(-0.5), [4e-6]),
        (lambda x: x * (x.pow(2).mean(-1, keepdim=True) + 4e-6).pow(2), []),
        (lambda x: x * torch.rsqrt(torch.add(x.pow(2), 4e-6, alpha=2)), []),
        (lambda x: F.cosine_similarity(x, x * 2, eps=1e-8).unsqueeze(-1), []),
    ],
)
def test_epsilons_of_torch_graphs(body: Callable[[Tensor], Tensor], expected: list[float]) -> None:
    program = program_of(Function(body), torch.rand(2, 4, 8))
    assert [
        n.value for _, n in epsilons(fx_steps(program.graph), lambda k: fx_number(k, lambda node: None))
    ] == expected


def test_an_epsilon_may_be_a_weight_of_one_element() -> None:
    module = Function(lambda x: x)
    module.body = lambda x: x * torch.rsqrt(x.pow(2) + module.tiny)  # type: ignore[operator]
    program = program_of(module, torch.rand(2, 4, 8))
    names = program.weight_names()
    read = lambda node: program.weights.read(names[node.name]) if node.name in names else None  # noqa: E731
    ((_, number),) = epsilons(fx_steps(program.graph), lambda key: fx_number(key, read))
    assert number == Number(float(torch.tensor(5e-6)), torch.float32)
