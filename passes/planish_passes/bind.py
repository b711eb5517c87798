"""Give inputs of a program their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor
from torch.export.graph_signature import InputKind, TensorArgument

from planish_passes.program import Program, finish


def bind(program: Program, values: Mapping[str, Tensor]) -> Program:
    """The program with some of its inputs as constants; names that it does not have are passed over.

    For looking at a program: symbolic sizes stay what they were, whatever the values' sizes are.

    Args:
        program: anything.
        values: input name -> value.
    """
    given = {p.name: values[p.name] for p in program.inputs if p.name in values}
    if not given:
        return program
    program = program.copy()
    names = program.weight_names()
    users = [n for n in program.graph.nodes if n.op == "placeholder" and n.name not in names]
    weights, nodes = program.weights, {}
    for port, node in zip(program.inputs, users, strict=True):
        if port.name in given:
            nodes[node.name] = port.name
            weights = weights.with_tensor(port.name, given[port.name])
            program.exported._state_dict[port.name] = node.meta["val"]
    for spec in program.exported.graph_signature.input_specs:
        if isinstance(spec.arg, TensorArgument) and spec.arg.name in nodes:
            spec.kind, spec.target, spec.persistent = InputKind.BUFFER, nodes[spec.arg.name], True
    left = tuple(p for p in program.inputs if p.name not in given)
    return finish(replace(program, weights=weights, inputs=left))
