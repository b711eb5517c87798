"""Linears whose inputs are rounded in two int8 passes, about 15 bits, in the time of twice as many tokens.

One int8 pass is not enough for a language model to say the same twice: whether a value falls to this side of a step or
to that depends on the last bits of what a kernel computed, and every such flip makes many more in the layers behind.
With steps 1/255 as wide, the words stay.

Of an input x [T, K], with a step s per token:

* s = (sum (x / 32130)^4)^(1/4): max |x| / s <= 126 * 255, less by a factor of up to K^(1/4), and without a maximum,
  which XNNPACK does not take;
* t = floor(x / s + 1/2), high = floor(t / 255) in -126..126 and low = t / 255 - high in [0, 1) are whole numbers and
  255ths: the two rows of one product, [2, T, K];
* XNNPACK rounds a row by its own smallest and largest value. Two channels are therefore given the ends of a range: 127
  and -128 in `high`, 1 and 0 in `low`, so that both stay as they are. What these two should have said is added in
  float32, with the sums for zero points: features [sums of t over groups, t_0 - 128 * 255, t_1 + 128 * 255] times
  [shift - zero point, q_0 - shift, q_1 - shift] * scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from planish_passes.ops import PAIR_LEAST, PAIR_RANGE
from planish_passes.program import Program, op_name
from planish_passes.quantise import SCALES, VALUES
from planish_passes.quantise import ZEROS as ZERO_POINTS
from planish_passes.weights import TensorSpec
from planish_targets.executorch.edit import Call, caller, constant, derived, swap
from planish_targets.executorch.operands import rounded, weights

PAIR = "int8_token_pair"
PAIR_SHIFTS = ".q_pair_shifts"
PINNED = 2  # channels that stand for the ends of a range
_BASE = 255.0  # steps of a whole number
_ENDS = ((127.0, -128.0), (1.0, 0.0))  # of `high` and of `low`
_ATEN = torch.ops.aten


@dataclass(frozen=True)
class Pair:
    """An input in two rounded rows.

    Args:
        rows: [2, T, K], rounded.
        steps: t, [1, T, K].
        step: s, [1, T, 1].
    """

    rows: fx.Node
    steps: fx.Node
    step: fx.Node


def unfit(node: fx.Node) -> str | None:
    """Why a linear cannot have its inputs in pairs, or None."""
    x, values = node.args[:2]
    assert isinstance(x, fx.Node)
    assert isinstance(values, fx.Node)
    if values.meta["val"].shape[1] <= PINNED:
        return "two channels are too few for two passes"
    if sum(not isinstance(s, int) for s in x.meta["val"].shape) > 1:
        return "more than one size of its input is unknown"
    return None


def in_pairs(program: Program, node: fx.Node, pairs: dict[fx.Node, Pair]) -> Program:
    """Rewrite one `planish.linear_q`.

    Args:
        pairs: inputs that are in two rows already; new ones are added.
    """
    x, values, _, zeros, bias, _, _ = node.args
    assert isinstance(x, fx.Node)
    assert isinstance(values, fx.Node)
    name = program.weight_names()[values.name].removesuffix(VALUES)
    call, (rows, columns) = caller(program.graph, node), values.meta["val"].shape
    if x not in pairs:
        program, pairs[x] = _pair(program, call, x, int(columns))
    pair = pairs[x]
    program, operands = weights(program, call, node, name)
    products = [call(_ATEN.linear.default, pair.rows, weight) for weight in operands]
    total = products[0] if len(products) == 1 else call(_ATEN.add.Tensor, *products)
    program, both = constant(program, "executorch.both", torch.full((1, 1, 2), _BASE))
    flat = call(_ATEN.view.default, total, [1, 2, -1])  # no slices: XNNPACK takes none of an unknown length
    result = call(_ATEN.view.default, call(_ATEN.bmm.default, both, flat), [1, -1, int(rows)])
    shift = 8 if len(operands) > 1 else 0
    program, shifts = _shifts(program, name, zeros is not None, shift)
    groups = int(shifts.meta["val"].shape[1]) - PINNED
    program, features = _features(program, call, pair, int(columns), groups)
    result = call(_ATEN.add.Tensor, result, call(_ATEN.linear.default, features, shifts))
    result = call(_ATEN.mul.Tensor, result, pair.step)
    if bias is not None:
        result = call(_ATEN.add.Tensor, result, bias)
    swap(program.graph, node, _as(call, result, x))
    return program


def _pair(program: Program, call: Call, x: fx.Node, columns: int) -> tuple[Program, Pair]:
    pinned = torch.zeros(2, 1, columns)
    pinned[:, 0, :PINNED] = torch.tensor(_ENDS)
    program, ends = constant(program, f"executorch.ends_{columns}", pinned)
    others = torch.cat([torch.zeros(PINNED), torch.ones(columns - PINNED)])
    program, free = constant(program, f"executorch.free_{columns}", others / _BASE)
    program, fourth = constant(program, f"executorch.fourth_{columns}", torch.full((1, columns), PAIR_RANGE**-4.0))
    program, least = constant(program, "executorch.least", torch.full((1,), PAIR_LEAST))  # of tokens that are all zero
    tokens = x
    if x.meta["val"].dim() != 3 or x.meta["val"].shape[0] != 1:
        tokens = call(_ATEN.view.default, x, [1, -1, columns])
    square = call(_ATEN.mul.Tensor, tokens, tokens)
    fourths = call(_ATEN.linear.default, call(_ATEN.mul.Tensor, square, square), fourth, least)
    step = call(_ATEN.sqrt.default, call(_ATEN.sqrt.default, fourths))
    program, half = constant(program, "executorch.one_half", torch.full((1,), 0.5))
    steps = call(_ATEN.floor.default, call(_ATEN.add.Tensor, call(_ATEN.div.Tensor, tokens, step), half))
    inner = call(_ATEN.mul.Tensor, steps, free)
    high = call(_ATEN.floor.default, inner)
    low = call(_ATEN.sub.Tensor, inner, high)
    rows = call(_ATEN.add.Tensor, call(_ATEN.cat.default, [high, low], 0), ends)
    return program, Pair(rounded(call, rows), steps, step)


def _features(program: Program, call: Call, pair: Pair, columns: int, groups: int) -> tuple[Program, fx.Node]:
    """[sums of steps over groups, what the pinned channels lack], [1, T, G + 2]."""
    sums = torch.eye(max(groups, 1)).repeat_interleave(columns // max(groups, 1), dim=1)[:groups]
    program, taken = constant(
        program, f"executorch.features_{groups}x{columns}", torch.cat([sums, torch.eye(PINNED, columns)])
    )
    less = torch.cat([torch.zeros(groups), -_BASE * torch.tensor(_ENDS).sum(0)])
    program, offset = constant(program, f"executorch.offset_{groups}", less)
    for user in pair.steps.users:
        if op_name(user) == "aten.linear" and user.args[1] is taken:
            return program, user
    return program, call(_ATEN.linear.default, pair.steps, taken, offset)


def _shifts(program: Program, name: str, zeros: bool, shift: int) -> tuple[Program, fx.Node]:
    """[shift - zero point, q_0 - shift, q_1 - shift] * scale, float32 [N, G + 2]; without the first part where it is
    0 everywhere."""
    rows, groups = program.weights.spec(name + SCALES).shape
    sums = groups if zeros or shift else 0
    sources = (name + VALUES, name + SCALES, *((name + ZERO_POINTS,) if zeros else ()))

    def shifted(values: Tensor, scales: Tensor, zero_points: Tensor | None = None) -> Tensor:
        pinned = (values[:, :PINNED].float() - shift) * scales[:, :1]
        if not sums:
            return pinned
        return torch.cat([scales * (shift - (0 if zero_points is None else zero_points.float())), pinned], dim=1)

    spec = TensorSpec((rows, sums + PINNED), torch.float32)
    return derived(program, name + PAIR_SHIFTS, sources, shifted, spec)


def _as(call: Call, result: fx.Node, x: fx.Node) -> fx.Node:
    """The result [1, T, N] with the leading sizes of x."""
    sizes = x.meta["val"].shape[:-1]
    if len(sizes) == 2 and sizes[0] == 1:
        return result
    rows = result.meta["val"].shape[-1]
    return call(_ATEN.view.default, result, [*(s if isinstance(s, int) else -1 for s in sizes), rows])
