from collections.abc import Callable

import pytest
import torch
from support import program_of
from torch import Tensor, nn

from planish_passes.canonicalise import Canonicalise
from planish_passes.fuse_linear import FuseLinear
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret


class Products(nn.Module):
    def __init__(self, fn: Callable[[Tensor, Tensor, Tensor], Tensor], rows: int, columns: int) -> None:
        super().__init__()
        self.weight, self.bias, self.fn = nn.Parameter(torch.randn(rows, columns)), nn.Parameter(torch.randn(6)), fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x, self.weight, self.bias)


FORMS = {
    "transposed": (lambda x, w, b: x @ w.T, (6, 4)),
    "transposed with bias": (lambda x, w, b: x @ w.transpose(0, 1) + b, (6, 4)),
    "stored the other way": (lambda x, w, b: x @ w + b, (4, 6)),
    "flattened": (lambda x, w, b: torch.addmm(b, x.view(-1, 4), w).view(2, 3, 6), (4, 6)),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_product_with_a_trained_matrix_is_a_linear(form: str) -> None:
    fn, shape = FORMS[form]
    x = torch.randn(2, 3, 4)
    program = run_passes(program_of(Products(fn, *shape), x), [Canonicalise()]).program
    after = run_passes(program, [FuseLinear(), Canonicalise()]).program
    assert after.count() == {"aten.linear": 1}
    linear = next(n for n in after.graph.nodes if n.op == "call_function")
    assert after.weights.spec(after.weight_names()[linear.args[1].name]).shape == (6, 4)
    assert torch.allclose(interpret(after, {"x0": x})["y0"], interpret(program, {"x0": x})["y0"], atol=1e-6)


@pytest.mark.parametrize(
    ("near_miss", "shape"),
    [
        (lambda x, w, b: x @ x.transpose(1, 2), (6, 4)),
        (lambda x, w, b: x @ (w * 2), (4, 6)),
        (lambda x, w, b: (x @ w) * w.sum(), (4, 6)),
    ],
    ids=["no weight", "computed", "also read as it is"],
)
def test_other_products_stay(near_miss: Callable[[Tensor, Tensor, Tensor], Tensor], shape: tuple[int, int]) -> None:
    program = program_of(Products(near_miss, *shape), torch.randn(2, 3, 4))
    assert run_passes(program, [FuseLinear()]).steps[0].changed == 0
