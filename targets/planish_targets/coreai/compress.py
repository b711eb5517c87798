"""Quantised weights as Core AI's own operators: integers and scales, or indices and tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument

from planish_passes.errors import PlanishError
from planish_passes.palette import TABLES
from planish_passes.program import Program, finish, module_path, op_name
from planish_passes.weights import TensorSpec
from planish_targets.executorch.edit import Call, caller, derived, swap

KEPT = frozenset(f"planish.{name}" for name in ("linear_q", "embedding_q", "linear_lut"))
COLUMNS = ".columns"  # of a table, in the shape that the operator wants
_ATEN = torch.ops.aten


def with_compressed(program: Program, ops: Any) -> Program:
    """The program with `blockwise_shift_scale` and `lut_to_dense` of coreai-torch in the place of planish's composites.

    Args:
        ops: `torch.ops.coreai`.
    """
    program = program.copy()
    dense: dict[fx.Node, fx.Node] = {}
    for node in [n for n in program.graph.nodes if n.op == "call_function" and op_name(n) in KEPT]:
        call, kind = caller(program.graph, node), op_name(node)
        if kind == "planish.linear_lut":
            x, indices, tables, bias = node.args
            if indices not in dense:
                program, entries = _entries(program, tables)
                dense[indices] = _first(program, node)(ops.lut_to_dense.default, indices, entries, 0)
            swap(program.graph, node, call(_ATEN.linear.default, x, dense[indices], bias))
            continue
        weight, scales, zeros = node.args[1:4]
        if weight not in dense:
            bits = node.args[5 if kind == "planish.linear_q" else 4]
            dtype = {4: torch.int4, 8: torch.int8}[bits]  # type: ignore[index]
            expand = ops.constexpr_blockwise_shift_scale.default
            dense[weight] = _first(program, node)(expand, weight, scales, zeros, None, dtype, None)
        if kind == "planish.linear_q":
            _demand_exact(node)
            swap(program.graph, node, call(_ATEN.linear.default, node.args[0], dense[weight], node.args[4]))
        else:
            swap(program.graph, node, call(_ATEN.embedding.default, dense[weight], node.args[0]))
    return finish(program)


def _first(program: Program, node: fx.Node) -> Call:
    """A call behind all placeholders, so that whoever uses the weight comes later."""
    return caller(program.graph, node, next(n for n in program.graph.nodes if n.op != "placeholder"))


def _entries(program: Program, tables: fx.Node) -> tuple[Program, fx.Node]:
    """Tables [G, E] as [G, 1, E, 1]."""
    groups, entries = tables.meta["val"].shape
    name, shape = program.weight_names()[tables.name], (int(groups), 1, int(entries), 1)
    spec = TensorSpec(shape, torch.float32)
    return derived(
        program, name.removesuffix(TABLES) + TABLES + COLUMNS, (name,), lambda t: t.float().view(shape), spec
    )


def _demand_exact(node: fx.Node) -> None:
    if node.args[6] != "none":
        raise PlanishError(
            f"Core AI rounds no activations, and this linear wants {node.args[6]!r}",
            f"module {module_path(node) or '(unknown)'}",
            "report it with the model's config.json",
        )


def name_palettes(exported: ExportedProgram) -> None:
    """Names of placeholders by which coreai-torch tells indices (uint8 here, 4 bits there) from tables."""
    specs = {s.arg.name: s for s in exported.graph_signature.input_specs if isinstance(s.arg, TensorArgument)}
    found = [n for n in exported.graph.nodes if op_name(n) == "coreai.lut_to_dense"]
    for number, node in enumerate(found):
        for operand, name in zip(node.args[:2], ("indices", "lut"), strict=True):
            old = operand.name
            operand._rename(f"{name}_{number}")
            operand.target = operand.name
            specs[old].arg = TensorArgument(operand.name)
