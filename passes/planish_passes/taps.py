"""Extra outputs: see the values inside an artifact, to find where it parts from the program."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, fx
from torch.export.graph_signature import OutputKind, OutputSpec, TensorArgument
from torch.utils._pytree import tree_structure

from planish_passes.program import Port, Program, finish, module_path, op_name

COMPOSITES = frozenset(
    [
        "aten.linear",
        "aten.layer_norm",
        "aten.embedding",
        "aten.conv1d",
        "aten.conv2d",
        "aten.batch_norm",
        "aten.gelu",
        "aten.relu",
        "aten.softmax",
        "aten.matmul",
        "aten.bmm",
        "planish.linear_q",
        "planish.embedding_q",
        "planish.attention",
    ]
)


def tap_points(program: Program) -> tuple[fx.Node, ...]:
    """Every composite, and the last node of every module whose composites were expanded; floating values only."""
    nodes = [n for n in program.graph.nodes if n.op == "call_function" and isinstance(n.meta.get("val"), Tensor)]
    last = {module_path(n): n for n in nodes}
    chosen = (n for n in nodes if op_name(n) in COMPOSITES or last[module_path(n)] is n)
    return tuple(n for n in chosen if n.meta["val"].is_floating_point())


def with_taps(program: Program) -> Program:
    """The program with the value at every tap point as an extra output, named after its node."""
    program = program.copy()
    output = program.graph.output_node()
    returned = list(output.args[0])  # type: ignore[arg-type]
    extra = [n for n in tap_points(program) if n not in returned]
    output.args = ((*returned, *extra),)
    program.exported._module_call_graph[0].signature.out_spec = tree_structure(tuple(range(len(returned) + len(extra))))
    specs = program.exported.graph_signature.output_specs
    specs.extend(OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(n.name), None) for n in extra)
    ports = tuple(Port(n.name, n.meta["val"].dtype, _shape(n)) for n in extra)
    return replace(finish(program), outputs=program.outputs + ports)


def _shape(node: fx.Node) -> tuple[int | str, ...]:
    return tuple(s if isinstance(s, int) else str(s) for s in node.meta["val"].shape)
