"""Norms, rotary positions and reshapes of decoders as products and sums that XNNPACK takes at any length."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from planish_passes.infra import PassResult, Refusal
from planish_passes.program import Program, finish, op_name
from planish_passes.weights import TensorSpec
from planish_targets.executorch.edit import Call, caller, constant, derived, swap

_ATEN = torch.ops.aten


def _calls(program: Program, name: str) -> list[fx.Node]:
    return [n for n in program.graph.nodes if n.op == "call_function" and op_name(n) == name]


@dataclass(frozen=True)
class NormByProduct:
    """`planish.rms_norm` whose mean is a product with a row of 1/K: XNNPACK takes no mean over the last axis alone."""

    def run(self, program: Program) -> PassResult:
        """See the class."""
        found = _calls(program, "planish.rms_norm")
        for node in found:
            x, weight, epsilon = node.args
            assert isinstance(x, fx.Node)
            width = int(x.meta["val"].shape[-1])
            row = torch.full((1, width), 1 / width)
            program, mean = constant(program, f"executorch.mean_{width}", row)
            call = caller(program.graph, node)
            squares = call(_ATEN.linear.default, call(_ATEN.mul.Tensor, x, x), mean)
            factor = call(_ATEN.rsqrt.default, call(_ATEN.add.Tensor, squares, epsilon))
            result = call(_ATEN.mul.Tensor, x, factor)
            swap(program.graph, node, result if weight is None else call(_ATEN.mul.Tensor, weight, result))
        return PassResult(finish(program), len(found))


@dataclass(frozen=True)
class RotaryByProduct:
    """`planish.rope` as x * C + (x P) * S, with heads behind tokens, so that the transposes around it cancel.

    P swaps the halves (or the pairs) and turns the sign of one: its entries are 0, 1 and -1, so that x P is exact.
    XNNPACK takes no slices of a length that is known only at run time. C and S are looked up once for all layers.
    """

    def run(self, program: Program) -> PassResult:
        """See the class."""
        rows: dict[tuple[fx.Node, ...], tuple[fx.Node, fx.Node]] = {}
        found = _calls(program, "planish.rope")
        for node in found:
            x, positions, cos, sin, interleaved = node.args
            assert isinstance(x, fx.Node)
            assert isinstance(positions, fx.Node)
            assert isinstance(cos, fx.Node)
            assert isinstance(sin, fx.Node)
            width, half = int(x.meta["val"].shape[-1]), int(cos.meta["val"].shape[1])
            key = (positions, cos, sin)
            if key not in rows:
                first = caller(program.graph, node, _behind(program, positions))
                program, c = _looked_up(program, first, positions, cos, (width, bool(interleaved), 1.0))
                program, s = _looked_up(program, first, positions, sin, (width, bool(interleaved), 0.0))
                rows[key] = (c, s)
            turn = turned(width, half, bool(interleaved))
            program, product = constant(program, f"executorch.turn_{width}_{half}_{int(bool(interleaved))}", turn)
            call, (c, s) = caller(program.graph, node), rows[key]
            tokens = call(_ATEN.transpose.int, x, 1, 2)
            swapped = call(_ATEN.linear.default, tokens, product)
            result = call(_ATEN.add.Tensor, call(_ATEN.mul.Tensor, tokens, c), call(_ATEN.mul.Tensor, swapped, s))
            swap(program.graph, node, call(_ATEN.transpose.int, result, 1, 2))
        return PassResult(finish(program), len(found))


def _behind(program: Program, positions: fx.Node) -> fx.Node:
    """The first place at which a node may read `positions`."""
    if positions.op != "placeholder":
        return positions.next
    return next(n for n in program.graph.nodes if n.op != "placeholder")


def _looked_up(
    program: Program, call: Call, positions: fx.Node, table: fx.Node, form: tuple[int, bool, float]
) -> tuple[Program, fx.Node]:
    """Rows of a table [L, R / 2] at full width, [B, Q, 1, D]. Positions beyond resident caches are left out."""
    width, interleaved, rest = form
    inner = {i for _, i in program.states}
    lengths = [p.shape[2] for p in program.inputs if p.name in inner and isinstance(p.shape[2], int)]
    length = min([int(table.meta["val"].shape[0]), *lengths])
    name = program.weight_names()[table.name]

    def wide(half: Tensor) -> Tensor:
        half = half[:length]
        full = half.repeat_interleave(2, dim=1) if interleaved else torch.cat([half, half], dim=1)
        return torch.cat([full, full.new_full((len(full), width - full.shape[1]), rest)], dim=1)

    spec = TensorSpec((length, width), table.meta["val"].dtype)
    program, full = derived(program, f"{name}.wide_{width}", (name,), wide, spec)
    return program, call(_ATEN.unsqueeze.default, call(_ATEN.embedding.default, full, positions), 2)


def turned(width: int, half: int, interleaved: bool) -> Tensor:
    """P as the weight of a linear, [D, D]: x P = [-b, a, 0] for x = [a, b, rest]."""
    matrix = torch.zeros(width, width)
    channels = torch.arange(half)
    a, b = (2 * channels, 2 * channels + 1) if interleaved else (channels, channels + half)
    matrix[a, b], matrix[b, a] = -1.0, 1.0
    return matrix


@dataclass(frozen=True)
class InferredLength:
    """Reshapes whose only unknown size is inferred (-1): XNNPACK takes them, and no symbols.

    Refused: two unknown sizes.
    """

    def run(self, program: Program) -> PassResult:
        """See the class."""
        changed, refused = 0, []
        for node in _calls(program, "aten.reshape"):
            sizes = node.meta["val"].shape
            unknown = [i for i, s in enumerate(sizes) if not isinstance(s, int)]
            if not unknown:
                continue
            source = node.args[0]
            assert isinstance(source, fx.Node)
            if len(unknown) > 1 or not source.meta["val"].is_contiguous():
                refused.append(Refusal.of(node, "more than one size is unknown, or its operand is not in order"))
                continue
            node.target = _ATEN.view.default
            node.args = (source, [-1 if i in unknown else int(s) for i, s in enumerate(sizes)])
            changed += 1
        return PassResult(finish(program), changed, tuple(refused))


@dataclass(frozen=True)
class Share:
    """Of equal calls on equal operands one is left."""

    def run(self, program: Program) -> PassResult:
        """See the class."""
        seen: dict[object, fx.Node] = {}
        removed = 0
        for node in list(program.graph.nodes):
            if node.op != "call_function" or not _pure(node):
                continue
            key = (node.target, repr(node.args), repr(sorted(node.kwargs.items())))
            if key in seen:
                swap(program.graph, node, seen[key])
                removed += 1
            else:
                seen[key] = node
        return PassResult(finish(program), removed)


def _pure(node: fx.Node) -> bool:
    target = node.target
    return not isinstance(target, torch._ops.OpOverload) or not (
        target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags
    )
