"""Find linear layers that are written as matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from planish_passes.infra import PassResult
from planish_passes.match import is_op, other, shape_of, sole
from planish_passes.program import Program, add_weight, finish
from planish_passes.weights import TensorSpec

_TRANSPOSED = ".transposed"


@dataclass(frozen=True)
class FuseLinear:
    """`aten.linear` in the place of a product with a trained matrix, and of the bias behind it.

    1. x @ W^T is a linear with the weight W;
    2. x @ W and addmm(bias, x, W) are linears with the weight W^T, which is transposed once, when the file is written;
    3. the reshapes to two dimensions and back around an addmm go.
    """

    def run(self, program: Program) -> PassResult:
        """See the class."""
        fused = 0
        for product in list(products(program)):
            program, weight = _weight(program, product)
            x, last, bias = product.x, product.node, product.bias
            if bias is None:
                last, bias = _biased(program, last)
            else:
                x, last = _unflattened(program, x, last)
            with program.graph.inserting_before(last):
                linear = program.graph.call_function(torch.ops.aten.linear.default, (x, weight, bias))
            linear.meta = {**product.node.meta, "val": last.meta["val"]}
            last.replace_all_uses_with(linear)
            fused += 1
        return PassResult(finish(program), fused)


@dataclass(frozen=True)
class Product:
    """A product of values [..., K] with a trained matrix: [N, K] where `transposed`, else [K, N]."""

    node: fx.Node
    x: fx.Node
    weight: fx.Node
    transposed: bool
    bias: fx.Node | None = None


def products(program: Program) -> Iterator[Product]:
    """Every product with a trained matrix that is not a linear yet."""
    names = program.weight_names()
    trained = {
        n
        for n in program.graph.nodes
        if n.name in names and len(shape_of(n)) == 2
        if program.weights.sources(names[n.name])
    }
    found = []
    for node in program.graph.nodes:
        if is_op(node, "aten.matmul", "aten.mm") and not node.kwargs:
            found.append((node, *node.args, None))
        elif is_op(node, "aten.addmm") and not node.kwargs and node.args[0].name in names:
            bias, x, matrix = node.args
            found.append((node, x, matrix, bias))
    made = []
    for node, x, matrix, bias in found:
        weight = _untransposed(matrix)
        if weight in trained:
            made.append(Product(node, x, weight, True, bias))
        elif matrix in trained:
            made.append(Product(node, x, matrix, False, bias))
    plain = {p.node for p in made if not p.transposed}
    # A matrix that something else reads as it is would be stored twice.
    return (p for p in made if p.transposed or all(u in plain for u in p.weight.users))


def _untransposed(matrix: Any) -> Any:
    if is_op(matrix, "aten.t", "aten.numpy_T"):
        return matrix.args[0]
    swaps = is_op(matrix, "aten.permute") and [d % 2 for d in matrix.args[1]] == [1, 0]
    swaps = swaps or (is_op(matrix, "aten.transpose") and {d % 2 for d in matrix.args[1:]} == {0, 1})
    return matrix.args[0] if swaps else None


def _weight(program: Program, product: Product) -> tuple[Program, fx.Node]:
    if product.transposed:
        return program, product.weight
    names = program.weight_names()
    name = names[product.weight.name]
    for node in program.graph.nodes:
        if names.get(node.name) == name + _TRANSPOSED:
            return program, node
    spec = program.weights.spec(name)
    turned = TensorSpec((spec.shape[1], spec.shape[0]), spec.dtype)
    store = program.weights.derive(name + _TRANSPOSED, (name,), _transpose, turned)
    fake = product.weight.meta["val"]
    return replace(program, weights=store), add_weight(program, name + _TRANSPOSED, fake.new_empty(turned.shape))


def _transpose(weight: Tensor) -> Tensor:
    return weight.t().contiguous()


def _biased(program: Program, product: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """The last node of the linear and its bias."""
    add = sole(product)
    bias = other(add, product) if is_op(add, "aten.add") and not add.kwargs else None
    fits = program.weight_of(bias) is not None and shape_of(bias) == shape_of(product)[-1:]
    return (add, bias) if fits else (product, None)


def _unflattened(program: Program, x: fx.Node, product: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The input and the result before and after the reshapes around a product of two dimensions."""
    back = sole(product)
    if not (is_op(x, "aten.reshape") and is_op(back, "aten.reshape")):
        return x, product
    source, width, sizes = x.args[0], shape_of(x)[-1], back.args[1]
    assert isinstance(source, fx.Node)
    if str(shape_of(product)[-1]) != str(shape_of(back)[-1]):
        return x, product
    wanted = (*shape_of(back)[:-1], width)
    if [str(s) for s in shape_of(source)] == [str(s) for s in wanted]:
        return source, back
    with program.graph.inserting_before(back):
        whole = program.graph.call_function(torch.ops.aten.reshape.default, (source, [*sizes[:-1], width]))
    whole.meta = {**x.meta, "val": x.meta["val"].reshape(wanted)}
    return whole, back
