"""Insert nodes and constants into a program's graph, with their fake values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from planish_passes.program import Program, add_weight
from planish_passes.weights import TensorSpec
from planish_targets.executorch.retrace import memory_of

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
        mode = fake_mode(graph)
        with mode, torch.no_grad():
            node.meta["val"] = memory_of(mode).call(_run, target, values, named, None)
        return node

    return call


def _run(target: Any, args: Any, kwargs: Any) -> Any:
    return target(*args, **kwargs)


def fake_mode(graph: fx.Graph) -> Any:
    """The mode that the graph's fake values belong to."""
    return next(n.meta["val"].fake_mode for n in graph.nodes if hasattr(n.meta.get("val"), "fake_mode"))


def swap(graph: fx.Graph, old: fx.Node, new: fx.Node) -> None:
    """Put `new` in the place of `old`."""
    old.replace_all_uses_with(new)
    graph.erase_node(old)


def constant(program: Program, name: str, value: Tensor) -> tuple[Program, fx.Node]:
    """A small constant under a name of its own; the node that is there already when the name is known."""
    return derived(program, name, (), lambda: value, TensorSpec.of(value))


def derived(
    program: Program, name: str, sources: tuple[str, ...], fn: Callable[..., Tensor], spec: TensorSpec
) -> tuple[Program, fx.Node]:
    """A weight that `fn` makes of others when it is written; the node that is there already when the name is known."""
    for placeholder, weight in program.weight_names().items():
        if weight == name:
            return program, next(n for n in program.graph.nodes if n.name == placeholder)
    store = program.weights.derive(name, sources, fn, spec) if sources else program.weights.with_lazy(name, spec, fn)
    program = replace(program, weights=store)
    with fake_mode(program.graph):
        node = add_weight(program, name, torch.empty(spec.shape, dtype=spec.dtype))
    return program, node
