"""The order of torch's own sort, without a copy."""

from __future__ import annotations

import operator
import random

import pytest
import torch
from torch import fx
from torch.fx.passes.tools_common import legalize_graph

from planish_targets.executorch.sorting import in_order


def disordered(seed: int, count: int = 60) -> fx.GraphModule:
    """A random graph whose nodes are in an order in which it cannot be computed."""
    draw, graph = random.Random(seed), fx.Graph()
    nodes = [graph.placeholder(f"x{i}") for i in range(3)]
    for _ in range(count):
        target = draw.choice([torch.add, torch.sub, operator.add, operator.mul])
        nodes.append(graph.call_function(target, (draw.choice(nodes), draw.choice(nodes))))
    graph.output(tuple(n for n in nodes if not n.users))
    calls = nodes[3:]
    draw.shuffle(calls)
    for node in calls[: count // 2]:
        nodes[2].append(node)
    return fx.GraphModule(torch.nn.Module(), graph)


def shown(module: fx.GraphModule) -> list[tuple[str, str, str, list[str]]]:
    return [(n.name, str(n.target), str(n.args), [u.name for u in n.users]) for n in module.graph.nodes]


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_order_of_torch_of_nodes_and_of_their_users(seed: int) -> None:
    ours, theirs = disordered(seed), disordered(seed)
    before, nodes = shown(ours), set(ours.graph.nodes)
    for _ in range(2):  # the second sort goes by what the first has left
        in_order(ours)
        legalize_graph(theirs)
        assert shown(ours) == shown(theirs)
    assert shown(ours) != before
    assert set(ours.graph.nodes) == nodes
    ours.graph.lint()
    x = [torch.randn(2) for _ in range(3)]
    torch.testing.assert_close(ours(*x), theirs(*x))


def test_a_circle_is_refused() -> None:
    module = disordered(0)
    first, last = (n for n in module.graph.nodes if n.op == "call_function" and n.users), module.graph.output_node()
    node = next(first)
    user = next(iter(node.users))
    while user is not last and next(iter(user.users)) is not last:
        user = next(iter(user.users))
    node.args = (user, user)
    with pytest.raises(RuntimeError, match="cycles"):
        in_order(module)
