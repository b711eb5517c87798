"""Graphs in topological order, without a copy: executorch sorts the whole program again behind every delegate."""

from __future__ import annotations

import operator
from collections import deque

import torch
from torch import fx

_ATEN = torch.ops.aten
# Arithmetic of sizes, and checks of numbers that are known at run time only.
_EARLY = frozenset(
    (
        *(operator.add, operator.mul, operator.sub, operator.floordiv, operator.truediv, operator.mod),
        *(operator.le, operator.lt, operator.ge, operator.gt, operator.eq, operator.ne),
        *(_ATEN.sym_constrain_range.default, _ATEN.sym_constrain_range_for_size.default, _ATEN._assert_async.msg),
        *(_ATEN.scalar_tensor.default, _ATEN._assert_scalar.default),
    )
)


def in_order(module: fx.GraphModule) -> fx.GraphModule:
    """What `torch.fx.passes.tools_common.legalize_graph` does, with the nodes that are there.

    Raises:
        RuntimeError: the graph has a cycle.
    """
    graph = module.graph
    order = _order(graph)
    if len(order) < len(graph.nodes):
        raise RuntimeError(f"Input graph has cycles, unable to add {sorted({*graph.nodes} - {*order})}")
    for node in order:
        graph._root.prepend(node)  # to the end
        node.users.clear()
    for node in order:
        for source in node.all_input_nodes:
            source.users[node] = None  # in the order of the graph, by which the next sorting goes
    module.recompile()
    return module


def _order(graph: fx.Graph) -> list[fx.Node]:
    """Nodes as Kahn's algorithm meets them, breadth first; arithmetic and checks of numbers first."""
    left = {node: len(node.all_input_nodes) for node in graph.nodes}
    ready, order = deque(n for n, count in left.items() if not count), list[fx.Node]()
    while ready:
        order.append(ready.popleft())
        for user in order[-1].users:
            left[user] -= 1
            if not left[user]:
                (ready.appendleft if user.op == "call_function" and user.target in _EARLY else ready.append)(user)
    return order
