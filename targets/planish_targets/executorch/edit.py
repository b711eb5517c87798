"""Insert nodes into a program's graph, with their fake values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

Call = Callable[..., fx.Node]


def caller(graph: fx.Graph, like: fx.Node, before: fx.Node | None = None) -> Call:
    """A function call(operator, *args, **kwargs) that inserts a node before `before`, as part of `like`'s module.

    Args:
        graph: the graph to edit.
        like: the node whose module the new ones belong to.
        before: where they go; `like` itself when left out.
    """

    def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        with graph.inserting_before(before or like):
            node = graph.call_function(target, args, kwargs)
        node.meta = {k: v for k, v in like.meta.items() if k != "val"}
        values, named = fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])  # type: ignore[misc]
        with like.meta["val"].fake_mode, torch.no_grad():
            node.meta["val"] = target(*values, **named)
        return node

    return call


def swap(graph: fx.Graph, old: fx.Node, new: fx.Node) -> None:
    """Put `new` in the place of `old`."""
    old.replace_all_uses_with(new)
    graph.erase_node(old)
