"""Find rotary position embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx

import planish_passes.decoder_ops  # noqa: F401  (registers the operator)
from planish_passes.infra import PassResult, Refusal
from planish_passes.match import is_op, shape_of
from planish_passes.positional import Table, ancestors, table_of
from planish_passes.program import Program, add_weight, finish, module_path
from planish_passes.rotations import Rotation, rotation, widest
from planish_passes.weights import TensorSpec

_ANGLES = tuple(
    f"aten.{n}" for n in ("cos", "sin", "polar", "embedding", "index", "index_select", "gather")
)  # an untrained table that is read by position holds angles


@dataclass(frozen=True)
class FuseRope:
    """`planish.rope` in the place of a rotation by angles of the position (arXiv:2104.09864); cos, sin become tables.

    1. x * cos + rotate(x) * sin: halves are rotated by cat(-x[half:], x[:half]), neighbours by stack(-x[1::2], x[::2]);
    2. cat(a * cos - b * sin, b * cos + a * sin), where a and b are the halves of x;
    3. only the first channels are rotated: cat(rotated, rest) is one operator;
    4. x may be [B, H, Q, D] or [B, Q, H, D];
    5. cos and sin must depend on positions alone, row by row, else the match is refused.

    What still computes with positions behind it is refused too, so that no rotation stays unfused in silence.

    Args:
        positions: name of the input that holds positions.
        axis: the dynamic dimension whose largest size is the length of the tables.
    """

    positions: str = "position_ids"
    axis: str = "sequence"

    def run(self, program: Program) -> PassResult:
        """See the class."""
        port = _port(program, self.positions)
        if port is None or self.axis not in program.axes:
            return PassResult(program, 0)
        tables = _Tables(program, self.positions, program.axes[self.axis][1])
        fused, refused = 0, list[Refusal]()
        for node in list(program.graph.nodes):
            found = rotation(node)
            heads = _heads_axis(found, port) if found else None
            if found is None or heads is None:
                continue
            pair = tables.pair(found)
            if pair is None:
                refused.append(Refusal.of(node, "rope is not fused: its angles depend on more than a token's position"))
                continue
            x, last = widest(found.x, node)
            _replace(program.graph, last, (x, port, *pair, found.interleaved), heads)
            fused += 1
        program = finish(tables.program)
        refused += _left(program, port)
        return PassResult(program, fused, tuple(refused))


def _replace(graph: fx.Graph, last: fx.Node, arguments: tuple[Any, ...], heads: int) -> None:
    with graph.inserting_before(last):
        if heads == 1:
            result = graph.call_function(torch.ops.planish.rope.default, arguments)
        else:
            x: fx.Node = arguments[0]
            turned = graph.call_function(torch.ops.aten.transpose.int, (x, 1, 2))
            turned.meta = {**last.meta, "val": x.meta["val"].transpose(1, 2)}
            rope = graph.call_function(torch.ops.planish.rope.default, (turned, *arguments[1:]))
            rope.meta = dict(turned.meta)
            result = graph.call_function(torch.ops.aten.transpose.int, (rope, 1, 2))
    result.meta = dict(last.meta)
    last.replace_all_uses_with(result)


def _port(program: Program, name: str) -> fx.Node | None:
    weights = program.weight_names()
    nodes = [n for n in program.graph.nodes if n.op == "placeholder" and n.name not in weights]
    return next((n for n, p in zip(nodes, program.inputs, strict=True) if p.name == name), None)


def _left(program: Program, port: fx.Node) -> list[Refusal]:
    """Angles, and rows of untrained tables, that are still computed from positions and nothing else."""
    names, refused, known = program.weight_names(), [], {port}
    for node in program.graph.nodes:
        untrained = node.name in names and not program.weights.sources(names[node.name])
        computed = node.op == "call_function" and all(n in known for n in node.all_input_nodes)
        if untrained or computed:
            known.add(node)
        if computed and is_op(node, *_ANGLES) and port in ancestors(node):
            refused.append(Refusal.of(node, "rotary positions of another form: computed at run time, not fused"))
    return refused


@dataclass
class _Tables:
    """Tables already made, by what they hold."""

    program: Program
    positions: str
    length: int
    known: dict[fx.Node, Table | None] = field(default_factory=dict)
    made: dict[tuple[str, bool, bool], fx.Node | None] = field(default_factory=dict)

    def pair(self, found: Rotation) -> tuple[fx.Node, fx.Node] | None:
        a, b = self._one(found.cos, found, "cos"), self._one(found.sin, found, "sin")
        return None if a is None or b is None else (a, b)

    def _one(self, node: fx.Node, found: Rotation, kind: str) -> fx.Node | None:
        if node not in self.known:
            self.known[node] = table_of(self.program, node, self.positions, self.length)
        table = self.known[node]
        if table is None:
            return None
        key = (table.key, found.interleaved, found.paired)
        if key not in self.made:
            half = table if found.paired else _half(table, found.interleaved, self.length)
            self.made[key] = None if half is None else self._add(half, node, kind)
        return self.made[key]

    def _add(self, half: Callable[[Tensor], Tensor], node: fx.Node, kind: str) -> fx.Node:
        width = half(torch.arange(1)).shape[1]
        name = f"{module_path(node)}.{kind}_table".lstrip(".")
        while name in self.program.weights:
            name += "_"
        length = self.length
        spec = TensorSpec((length, width), torch.float32)
        whole = cache(lambda: half(torch.arange(length)))
        store = self.program.weights.with_lazy(
            name, spec, whole, (), lambda start, stop: half(torch.arange(start, stop))
        )
        self.program = replace(self.program, weights=store)
        with node.meta["val"].fake_mode:
            return add_weight(self.program, name, torch.empty(length, width))


def _half(table: Table, interleaved: bool, length: int) -> Callable[[Tensor], Tensor] | None:
    """One value for each pair, if both of a pair have the same."""

    def split(rows: Tensor) -> tuple[Tensor, Tensor]:
        if interleaved:
            return rows[:, ::2], rows[:, 1::2]
        half = rows.shape[1] // 2
        return rows[:, :half], rows[:, half:]

    a, b = split(table(torch.arange(min(64, length))))
    if a.shape != b.shape or not torch.equal(a, b):
        return None
    return lambda at: split(table(at))[0].contiguous()


def _heads_axis(found: Rotation, port: fx.Node) -> int | None:
    """The axis of heads, 1 or 2, when the other one holds the tokens, for x and for the angles alike."""
    shape, tokens = [str(s) for s in shape_of(found.x)], str(shape_of(port)[1])
    if len(shape) != 4 or (shape[1] == tokens) == (shape[2] == tokens):
        return None
    heads = 2 if shape[1] == tokens else 1
    for angles in (found.cos, found.sin):
        sizes = ["1"] * (4 - len(shape_of(angles))) + [str(s) for s in shape_of(angles)]
        if len(sizes) != 4 or sizes[3 - heads] != tokens or sizes[heads] != "1":
            return None
    return heads
