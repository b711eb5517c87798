"""Tables over positions: values that depend on a token's place and on nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from planish_passes.match import is_op, shape_of
from planish_passes.program import Program


@dataclass(frozen=True)
class Table:
    """A function from positions [N] int64 to rows [N, R].

    Args:
        module: the part of the graph that computes it.
        key: equal keys mean equal tables.
    """

    module: fx.GraphModule
    key: str

    def __call__(self, at: Tensor) -> Tensor:
        """Rows at these positions."""
        with torch.no_grad():
            rows: Tensor = self.module(at[None])
        return rows.reshape(at.shape[0], rows.shape[-1])


def table_of(program: Program, node: fx.Node, positions: str, length: int) -> Table | None:
    """A function from positions to this node's rows, or None.

    Args:
        node: its last dimension are channels, one other is tokens; all others have size 1 or are the batch.
        positions: name of the input that holds them.
        length: positions below it are asked for.

    None when the node depends on another input's values, on trained weights, or when a row depends on other rows
    (rotary embeddings that change with the longest position).
    """
    names, ports = program.weight_names(), iter(program.inputs)
    needed = ancestors(node)
    graph, mapping, sizes = fx.Graph(), dict[fx.Node, fx.Node](), list[str]()
    given = graph.placeholder("positions")
    for old in program.graph.nodes:
        if old.op == "placeholder" and old.name not in names and next(ports).name == positions:
            mapping[old], sizes = given, [str(s) for s in shape_of(old)]
        if old not in needed or old in mapping:
            continue
        if old.op == "placeholder" and old.name in names:
            if program.weights.sources(names[old.name]):
                return None
            mapping[old] = graph.get_attr(old.name)
        elif is_op(old, "aten.sym_size"):
            if str(old.meta["val"]) not in sizes:
                return None
            mapping[old] = graph.call_function(torch.ops.aten.sym_size.int, (given, sizes.index(str(old.meta["val"]))))
        elif old.op == "call_function" and all(n in mapping for n in old.all_input_nodes):
            mapping[old] = graph.node_copy(old, lambda n: mapping[n])
        elif old.op == "call_function" or not _sized_only(old, needed):
            return None
    if not any(mapping.get(n) is given for n in needed):
        return None
    graph.output(mapping[node])
    constants = {n.name: program.weights.read(names[n.name]) for n in needed if n.name in names}
    table = Table(fx.GraphModule(constants, graph), _key(graph, constants))
    return table if _row_by_row(table, length) else None


def ancestors(node: fx.Node) -> set[fx.Node]:
    """A node and all that it is computed from."""
    found, todo = {node}, [node]
    while todo:
        for source in todo.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                todo.append(source)
    return found


def _sized_only(node: fx.Node, needed: set[fx.Node]) -> bool:
    return all(is_op(u, "aten.sym_size") for u in node.users if u in needed)


def _key(graph: fx.Graph, constants: Mapping[str, Tensor]) -> str:
    """Operators and arguments in order, with values in the place of names."""
    number = {n: i for i, n in enumerate(graph.nodes)}
    digest = hashlib.sha256()
    for node in graph.nodes:
        if node.op == "get_attr":
            value = constants[str(node.target)].contiguous()
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
            continue
        arguments = fx.node.map_arg((node.args, node.kwargs), lambda n: f"%{number[n]}")  # type: ignore[arg-type,return-value]
        digest.update(f"{node.op} {node.target} {arguments}\n".encode())
    return digest.hexdigest()


def _row_by_row(table: Table, length: int) -> bool:
    asked = sorted({0, min(1, length - 1), length // 3, length - 1})
    try:
        together: Any = table(torch.tensor(asked))
        return torch.equal(torch.cat([table(torch.tensor([p])) for p in asked]), together)
    except RuntimeError:
        return False  # it was traced for another number of positions and fits no other
