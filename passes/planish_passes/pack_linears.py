"""One matrix product in the place of several that read the same input."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from planish_passes.infra import PassResult
from planish_passes.match import is_op
from planish_passes.program import Program, add_weight, finish, module_path
from planish_passes.quantise import MINIMA, SCALES, VALUES, ZEROS

PACKED = "+"  # between the names of weights that are stored one behind the other


@dataclass(frozen=True)
class PackLinears:
    """Quantised linears of one input and one format become one, and slices of its result.

    Rows are quantised independently, so integers and scales are those of the parts, bit for bit.

    1. two or more `planish.linear_q` with the same input, width, group and activations, all with or all without bias;
    2. weights that something else reads as well stay apart, and so do those with one scale per channel: what their
       kernels do to inputs differs by role;
    3. what minima add to each of them becomes one `planish.linear_minima` and one sum.
    """

    def run(self, program: Program) -> PassResult:
        """See the class."""
        packed = 0
        for source in list(program.graph.nodes):
            groups: dict[Any, list[fx.Node]] = defaultdict(list)
            for user in source.users:
                if is_op(user, "planish.linear_q") and user.args[0] is source and _apart(user):
                    groups[_format(user)].append(user)
            for members in groups.values():
                if len(members) > 1:
                    order = {n: i for i, n in enumerate(program.graph.nodes)}
                    members.sort(key=lambda n: order[n])
                    program = _pack(program, source, members)
                    packed += len(members)
        return PassResult(finish(program), packed)


def _apart(node: fx.Node) -> bool:
    _, weight, scales = node.args[:3]
    return len(weight.users) == 1 and scales.meta["val"].shape[1] > 1  # type: ignore[union-attr]


def _format(node: fx.Node) -> tuple[Any, ...]:
    _, weight, scales, zeros, bias, bits, activations = node.args
    columns, groups = weight.meta["val"].shape[1], scales.meta["val"].shape[1]  # type: ignore[union-attr]
    return columns, groups, zeros is None, bias is None, bits, activations, _sum(node) is None


def _sum(node: fx.Node) -> fx.Node | None:
    """The sum of a linear and what its minima add."""
    only = next(iter(node.users)) if len(node.users) == 1 else None
    if only is None or not is_op(only, "aten.add") or not is_op(only.args[1], "planish.linear_minima"):
        return None
    offset = only.args[1]
    assert isinstance(offset, fx.Node)
    minima = offset.args[1]
    alone = only.args[0] is node and offset.args[0] is node.args[0] and len(offset.users) == 1
    return only if alone and len(minima.users) == 1 else None  # type: ignore[union-attr]


def _pack(program: Program, source: fx.Node, members: list[fx.Node]) -> Program:
    parts: list[Any] = []
    for position, suffix in ((1, VALUES), (2, SCALES), (3, ZEROS), (4, "")):
        nodes: list[Any] = [m.args[position] for m in members]
        if nodes[0] is None:
            parts.append(None)
            continue
        program, joined = _concatenate(program, nodes, suffix)
        parts.append(joined)
    first, sums = members[0], [_sum(m) for m in members]
    widths = [int(m.args[1].meta["val"].shape[0]) for m in members]  # type: ignore[union-attr]
    value = first.meta["val"]
    meta = {"val": value.new_empty((*value.shape[:-1], sum(widths))), "planish_module": _parent(first)}
    with program.graph.inserting_before(first):
        whole = program.graph.call_function(torch.ops.planish.linear_q.default, (source, *parts, *first.args[5:]))
        whole.meta = dict(meta)
    if sums[0] is not None:
        program, joined = _concatenate(program, [s.args[1].args[1] for s in sums], MINIMA)  # type: ignore[union-attr]
        with program.graph.inserting_before(first):
            offset = program.graph.call_function(torch.ops.planish.linear_minima.default, (source, joined))
            whole = program.graph.call_function(torch.ops.aten.add.Tensor, (whole, offset))
            offset.meta, whole.meta = dict(meta), dict(meta)
    at = 0
    for member, width in zip([s or m for s, m in zip(sums, members, strict=True)], widths, strict=True):
        with program.graph.inserting_before(member):
            piece = program.graph.call_function(torch.ops.aten.slice.Tensor, (whole, -1, at, at + width))
        piece.meta = dict(member.meta)
        member.replace_all_uses_with(piece)
        program.graph.erase_node(member)
        at += width
    return program


def _concatenate(program: Program, nodes: list[fx.Node], suffix: str) -> tuple[Program, fx.Node]:
    names = [str(program.weight_of(n)) for n in nodes]
    name = PACKED.join(n.removesuffix(suffix) for n in names) + suffix
    program = replace(program, weights=program.weights.concatenate(name, tuple(names)))
    spec = program.weights.spec(name)
    with nodes[0].meta["val"].fake_mode:
        fake: Tensor = torch.empty(spec.shape, dtype=spec.dtype)
    return program, add_weight(program, name, fake)


def _parent(node: fx.Node) -> str:
    return module_path(node).rpartition(".")[0]
