"""Put the plain-torch body in the place of every composite that a target does not keep."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from planish_passes.infra import PassResult
from planish_passes.ops import BODIES
from planish_passes.program import Program, copy_graph, finish, module_path, op_name


@dataclass(frozen=True)
class Expand:
    """Expand composites.

    Args:
        keeps: names (`planish.attention`, ...) that stay.
    """

    keeps: frozenset[str] = frozenset()

    def run(self, program: Program) -> PassResult:
        """See the class."""
        expanded = 0
        while found := [n for n in program.graph.nodes if n.target in BODIES and op_name(n) not in self.keeps]:
            for node in found:  # bodies may hold composites again
                _inline(program.graph, node)
            expanded += len(found)
        return PassResult(finish(program), expanded)


def _inline(graph: fx.Graph, node: fx.Node) -> None:
    body, sources = BODIES[node.target], node.all_input_nodes  # type: ignore[index]
    values = [s.meta["val"] for s in sources]

    def call(*tensors: torch.Tensor) -> torch.Tensor:
        given = dict(zip(sources, tensors, strict=True))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: given[n])  # type: ignore[misc]
        return body(*args, **kwargs)  # type: ignore[no-any-return]

    mode = next(v.fake_mode for v in values if hasattr(v, "fake_mode"))
    with mode, torch.no_grad():
        traced = make_fx(call, tracing_mode="fake", pre_dispatch=True)(*values).graph
    traced = copy_graph(traced)
    mapping = dict(zip([n for n in traced.nodes if n.op == "placeholder"], sources, strict=True))
    with graph.inserting_before(node):
        for inner in traced.nodes:
            if inner.op == "call_function":
                mapping[inner] = graph.node_copy(inner, lambda n: mapping[n])
                mapping[inner].meta = {"val": inner.meta["val"], "planish_module": module_path(node)}
        result = traced.output_node().args[0]
    if isinstance(result, fx.Node):
        node.replace_all_uses_with(mapping[result])
    else:  # several results: each is read by its number
        for part in list(node.users):
            part.replace_all_uses_with(mapping[result[part.args[1]]])  # type: ignore[index]
            graph.erase_node(part)
    graph.erase_node(node)
