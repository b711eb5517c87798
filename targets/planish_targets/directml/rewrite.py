"""Forms that float16 arithmetic survives, in the place of equal ones."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from planish_passes.infra import PassResult
from planish_passes.program import Program, finish, module_path, op_name

_PRODUCTS = ("aten.matmul", "aten.bmm")
_FACTORS = ("aten.mul", "aten.div")


@dataclass(frozen=True)
class ScaleFirst:
    """`(factor * a) @ b` in the place of `factor * (a @ b)`, also for a division by a number.

    Attention scores before their scaling can pass 65504 where the scaled ones are small. Left alone: products with
    other readers, factors that are tensors, and factors that enlarge.
    """

    def run(self, program: Program) -> PassResult:
        """See the class."""
        changed = 0
        for node in list(program.graph.nodes):
            if node.op == "call_function" and op_name(node) in _FACTORS and _shrinks(node):
                product = node.args[0]
                if isinstance(product, fx.Node) and len(product.users) == 1 and _is_product(product):
                    _swap(program.graph, product, node)
                    changed += 1
        return PassResult(finish(program), changed)


def _is_product(node: fx.Node) -> bool:
    return node.op == "call_function" and op_name(node) in _PRODUCTS


def _shrinks(node: fx.Node) -> bool:
    factor = node.args[1]
    if not isinstance(factor, (int, float)) or node.kwargs or factor == 0:
        return False
    return abs(factor) <= 1 if op_name(node) == "aten.mul" else abs(factor) >= 1


def _swap(graph: fx.Graph, product: fx.Node, factor: fx.Node) -> None:
    left, right = product.args[:2]
    assert isinstance(left, fx.Node)
    assert callable(factor.target)
    with graph.inserting_before(product):
        scaled = graph.call_function(factor.target, (left, factor.args[1]))
    scaled.meta = {"val": left.meta["val"], "planish_module": module_path(factor)}
    product.args = (scaled, right)
    factor.replace_all_uses_with(product)
    graph.erase_node(factor)
