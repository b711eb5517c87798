"""Find attention written out by hand in models that bypass the attention interface."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from planish_passes.infra import PassResult, Refusal
from planish_passes.program import Program, finish, op_name

_PRODUCTS = ("aten.matmul", "aten.bmm")


@dataclass(frozen=True)
class FuseAttention:
    """`planish.attention` in the place of matmul(softmax(scale * q k^T + biases), v), rank 4.

    1. the scale is a `mul` or `div` by a number on the product or on q;
    2. every other term that is added to the product becomes the bias;
    3. the product has one use on its way to the softmax, else the match is refused.
    """

    def run(self, program: Program) -> PassResult:
        """See the class."""
        fused, refused = 0, []
        for node in list(program.graph.nodes):
            if node.op != "call_function" or op_name(node) not in _PRODUCTS:
                continue
            softmax = node.args[0]
            if not (
                isinstance(softmax, fx.Node) and softmax.op == "call_function" and op_name(softmax) == "aten.softmax"
            ):
                continue
            found = _match(node, softmax)
            if isinstance(found, str):
                refused.append(Refusal.of(node, f"attention is not fused: {found}"))
                continue
            _rewrite(program.graph, node, *found)
            fused += 1
        return PassResult(finish(program), fused, tuple(refused))


def _match(node: fx.Node, softmax: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node, list[fx.Node], float] | str:
    value = softmax.meta["val"]
    if value.dim() != 4:
        return f"the scores have rank {value.dim()}, not 4"
    if softmax.args[1] not in (-1, 3):
        return f"the softmax runs over axis {softmax.args[1]}"
    at, biases, scale = softmax.args[0], [], 1.0
    while True:
        if not isinstance(at, fx.Node) or at.op != "call_function":
            return "the scores do not come from a product"
        if len(at.users) != 1:
            return f"{at.name} has other uses"
        name = op_name(at)
        if name in _PRODUCTS:
            break
        if name == "aten.add" and not at.kwargs:
            at, bias = _split(at)
            if bias is None or scale != 1.0:
                return f"the terms of {at} cannot be told apart"
            biases.append(bias)
        elif name in ("aten.mul", "aten.div") and isinstance(at.args[1], (int, float)):
            scale *= float(at.args[1]) if name == "aten.mul" else 1 / float(at.args[1])
            at = at.args[0]
        else:
            return f"{name} stands between product and softmax"
    return _operands(node, at, biases, scale)


def _split(add: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """The term that holds the product, and the other one."""
    a, b = add.args[:2]
    if not (isinstance(a, fx.Node) and isinstance(b, fx.Node)):
        return add, None
    holds = [_holds_product(t) for t in (a, b)]
    if holds[0] == holds[1]:
        return add, None
    return (a, b) if holds[0] else (b, a)


def _holds_product(node: fx.Node) -> bool:
    while node.op == "call_function" and op_name(node) in ("aten.add", "aten.mul", "aten.div"):
        inner = [a for a in node.args[:2] if isinstance(a, fx.Node)]
        if len(inner) == 2:
            return any(_holds_product(n) for n in inner)
        node = inner[0]
    return node.op == "call_function" and op_name(node) in _PRODUCTS


def _operands(
    node: fx.Node, product: fx.Node, biases: list[fx.Node], scale: float
) -> tuple[fx.Node, fx.Node, fx.Node, list[fx.Node], float] | str:
    q, transposed = product.args[:2]
    v = node.args[1]
    if not (isinstance(q, fx.Node) and isinstance(transposed, fx.Node) and isinstance(v, fx.Node)):
        return "an operand is not a tensor"
    if op_name(transposed) != "aten.transpose" or {int(d) % 4 for d in transposed.args[1:3]} != {2, 3}:  # type: ignore[arg-type]
        return "the key is not transposed on its last two axes"
    k = transposed.args[0]
    assert isinstance(k, fx.Node)
    if any(t.meta["val"].dim() != 4 for t in (q, k, v)):
        return "query, key and value are not of rank 4"
    return q, k, v, biases, scale


def _rewrite(
    graph: fx.Graph, node: fx.Node, q: fx.Node, k: fx.Node, v: fx.Node, biases: list[fx.Node], scale: float
) -> None:
    with graph.inserting_before(node):
        bias: fx.Node | None = None
        for term in biases:
            bias = term if bias is None else _call(graph, node, torch.ops.aten.add.Tensor, (bias, term))
        attention = _call(graph, node, torch.ops.planish.attention.default, (q, k, v, None, bias, None, scale, 0.0))
        restored = _call(graph, node, torch.ops.aten.transpose.int, (attention, 1, 2))
    node.replace_all_uses_with(restored)


def _call(graph: fx.Graph, like: fx.Node, target: torch._ops.OpOverload, arguments: tuple[object, ...]) -> fx.Node:
    new = graph.call_function(target, arguments)  # type: ignore[arg-type]
    new.meta = dict(like.meta)
    values = fx.node.map_arg(arguments, lambda n: n.meta["val"])
    with like.meta["val"].fake_mode:
        new.meta["val"] = target(*values)  # type: ignore[misc]
    return new
