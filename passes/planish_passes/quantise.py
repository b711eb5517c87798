"""Quantise weights, once, on the shared program: all targets encode these integers and scales."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from planish_passes.infra import PassResult, Refusal
from planish_passes.program import Program, add_weight, finish, op_name
from planish_passes.rounding import round_to_nearest
from planish_passes.weights import QuantizedTensor, TensorSpec, WeightFormat, WeightStore

INT8 = WeightFormat(8)
VALUES, SCALES, ZEROS, MINIMA = ".q_values", ".q_scales", ".q_zeros", ".q_minima"

Rounder = Callable[[Tensor, WeightFormat], tuple[Tensor, Tensor, Tensor | None]]

_SMALLEST = 16  # group that kernels have
_COVERED = {"aten.linear": 1, "aten.embedding": 0}  # operator -> which argument is the weight
_OTHER = ("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.matmul", "aten.bmm", "aten.mm", "aten.addmm")


@dataclass(frozen=True)
class Quantise:
    """Weights of linears and embeddings to integers, per output channel or row, round to nearest.

    Weights whose integers are in the program's store already (calibration made them, or the checkpoint holds them) are
    not rounded again; where the store has minima as well, they are added to what the integers give.

    What is left in floating point is listed with its reason: convolutions and matrix products (not covered by this
    recipe), weights that are computed at run time, and weights that are also used in another way.

    Args:
        format: integers and scales; a group that does not divide a weight's input features is halved until it does.
            None: weights that `formats` does not name stay floating point.
        formats: weight name -> another format for that weight.
        rounder: (weight, format) -> integers, scales, zero points; round to nearest when None.
        reasons: weight name -> why it has no format, for the list of what stays floating point.
    """

    format: WeightFormat | None = INT8
    formats: Mapping[str, WeightFormat] = field(default_factory=dict)
    rounder: Rounder | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    def run(self, program: Program) -> PassResult:
        """See the class."""
        plan = self.plan(program)
        for name, (format, nodes) in plan.weights.items():
            program = _quantise_weight(program, name, nodes, format, self.rounder or round_to_nearest)
        changed = sum(len(nodes) for _, nodes in plan.weights.values())
        return PassResult(finish(program), changed, plan.refused)

    def plan(self, program: Program) -> Plan:
        """What `run` will do."""
        names, refused = program.weight_names(), []
        sites: dict[str, list[fx.Node]] = defaultdict(list)
        for node in program.graph.nodes:
            if node.op != "call_function":
                continue
            if op_name(node) in _COVERED:
                reason = _unfit(node, names)
                if reason is None:
                    sites[names[_weight(node).name]].append(node)
                else:
                    refused.append(Refusal.of(node, reason))
            elif op_name(node) in _OTHER and any(_trained(program, names, a) for a in node.args):
                refused.append(Refusal.of(node, "this recipe covers linear and embedding weights only"))
        weights = {}
        for name, nodes in sites.items():
            wanted = self.formats.get(name, self.format)
            if wanted is None:
                refused += [Refusal.of(n, self.reasons.get(name, f"{name} is not in the checkpoint")) for n in nodes]
                continue
            columns = program.weights.spec(name).shape[1]
            format = _fitting(wanted, columns)
            if format is None:
                reason = f"{columns} input features do not divide into groups of {wanted.group} or {_SMALLEST}"
                refused += [Refusal.of(n, reason) for n in nodes]
            else:
                weights[name] = (format, nodes)
        return Plan(weights, tuple(refused))


@dataclass(frozen=True)
class Plan:
    """What is quantised.

    Args:
        weights: weight name -> its format, and the calls that use it.
        refused: calls whose weights stay floating point.
    """

    weights: Mapping[str, tuple[WeightFormat, list[fx.Node]]]
    refused: tuple[Refusal, ...]


def tables(program: Program) -> frozenset[str]:
    """Weights that an embedding reads (tied heads among them)."""
    names = program.weight_names()
    found = (_weight(n) for n in program.graph.nodes if n.op == "call_function" and op_name(n) == "aten.embedding")
    return frozenset(names[w.name] for w in found if w.name in names)


def _fitting(format: WeightFormat, columns: int) -> WeightFormat | None:
    """The format with the largest group that divides the input features; None when there is none."""
    group = format.group
    if not group or columns % group == 0:
        return format
    while group > _SMALLEST and columns % group:
        group //= 2
    return None if columns % group else replace(format, group=group)


def _weight(node: fx.Node) -> fx.Node:
    weight = node.args[_COVERED[op_name(node)]]
    assert isinstance(weight, fx.Node)
    return weight


def _trained(program: Program, names: dict[str, str], argument: object) -> bool:
    return (
        isinstance(argument, fx.Node) and argument.name in names and bool(program.weights.sources(names[argument.name]))
    )


def _unfit(node: fx.Node, names: dict[str, str]) -> str | None:
    weight = _weight(node)
    if weight.name not in names:
        return "its weight is computed at run time"
    others = [
        u for u in weight.users if u.op != "call_function" or op_name(u) not in _COVERED or _weight(u) is not weight
    ]
    if others:
        return f"its weight is also used by {', '.join(sorted(u.name for u in others))}"
    return None


def _quantise_weight(
    program: Program, name: str, nodes: list[fx.Node], format: WeightFormat, rounder: Rounder
) -> Program:
    rows, columns = program.weights.spec(name).shape
    fake = _weight(nodes[0]).meta["val"]
    groups = columns // format.group if format.group else 1
    parts = {VALUES: (columns, torch.int8), SCALES: (groups, torch.float32)}
    if not format.symmetric:
        parts[ZEROS] = (groups, torch.int8)
    specs = {name + suffix: TensorSpec((rows, width), dtype) for suffix, (width, dtype) in parts.items()}
    if name + VALUES not in program.weights:
        store = program.weights.derive_together(specs, (name,), lambda weight: rounder(weight, format), by_rows=True)
        program = replace(program, weights=store)
    placed: list[fx.Node | None] = []
    with fake.fake_mode:
        for suffix, (width, dtype) in parts.items():
            placed.append(add_weight(program, name + suffix, torch.empty(rows, width, dtype=dtype)))
        minima = add_weight(program, name + MINIMA, torch.empty(rows, groups)) if _has_minima(program, name) else None
    for node in nodes:
        _replace_call(program, node, (*placed, None)[:3], format, minima)
    return program


def _has_minima(program: Program, name: str) -> bool:
    return name + MINIMA in program.weights


def _replace_call(
    program: Program,
    node: fx.Node,
    parts: tuple[fx.Node | None, ...],
    format: WeightFormat,
    minima: fx.Node | None,
) -> None:
    with program.graph.inserting_before(node):
        if op_name(node) == "aten.linear":
            bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
            target = torch.ops.planish.linear_q.default
            arguments: tuple[Any, ...] = (node.args[0], *parts, bias, format.bits, "none")
        else:
            target = torch.ops.planish.embedding_q.default
            arguments = (node.args[1], *parts, format.bits)
        new = program.graph.call_function(target, arguments)
        new.meta = dict(node.meta)
        if minima is not None:
            new = _with_minima(program, new, node, minima)
    node.replace_all_uses_with(new)
    program.graph.erase_node(node)


def _with_minima(program: Program, new: fx.Node, node: fx.Node, minima: fx.Node) -> fx.Node:
    if op_name(node) == "aten.linear":
        offset = program.graph.call_function(torch.ops.planish.linear_minima.default, (node.args[0], minima))
    else:
        columns = int(new.meta["val"].shape[-1])
        offset = program.graph.call_function(
            torch.ops.planish.embedding_minima.default, (node.args[1], minima, columns)
        )
    total = program.graph.call_function(torch.ops.aten.add.Tensor, (new, offset))
    offset.meta, total.meta = dict(node.meta), dict(node.meta)
    return total


def widths(program: Program) -> dict[str, int]:
    """Bits of the integers of every quantised weight, by the name of the weight that they replace."""
    names, position = program.weight_names(), {"planish.linear_q": 5, "planish.embedding_q": 4}
    calls = (n for n in program.graph.nodes if n.op == "call_function" and op_name(n) in position)
    return {names[n.args[1].name].removesuffix(VALUES): int(n.args[position[op_name(n)]]) for n in calls}


def formats(program: Program) -> dict[str, WeightFormat]:
    """The formats of a program's quantised weights, by the name of the weight that they replace; reads no weight."""
    found, names = dict[str, WeightFormat](), program.weight_names()
    for node in program.graph.nodes:
        if node.op == "call_function" and op_name(node) in ("planish.linear_q", "planish.embedding_q"):
            name = names[node.args[1].name].removesuffix(VALUES)
            columns, groups = (program.weights.spec(name + part).shape[1] for part in (VALUES, SCALES))
            bits = int(node.args[5] if op_name(node) == "planish.linear_q" else node.args[4])
            found[name] = WeightFormat(bits, 0 if groups == 1 else columns // groups, node.args[3] is None)
    return found


def quantized(program: Program) -> dict[str, QuantizedTensor]:
    """The quantised weights of a program, by the name of the weight that they replace."""
    store = program.weights
    return {
        name: quantized_rows(store, name, format, 0, store.spec(name + VALUES).shape[0])
        for name, format in formats(program).items()
    }


def quantized_rows(store: WeightStore, name: str, format: WeightFormat, start: int, stop: int) -> QuantizedTensor:
    """Rows [start, stop) of the quantised weight that takes the place of `name`."""
    values, scales = (store.rows(name + part, start, stop) for part in (VALUES, SCALES))
    zeros = None if format.symmetric else store.rows(name + ZEROS, start, stop)
    minima = store.rows(name + MINIMA, start, stop) if name + MINIMA in store else None
    return QuantizedTensor(values, scales, zeros, format, minima)
