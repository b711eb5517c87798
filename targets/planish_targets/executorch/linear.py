"""Quantised linears in the forms that XNNPACK runs with its int8 and int4 kernels.

XNNPACK multiplies per-token asymmetric int8 activations (x^: what rounding leaves of x) with symmetric weights: int8
or int4 with a scale per output channel ("qd8-f32-qc8w", "-qc4w"), or int4 with a bfloat16 scale per group of 32, 64,
... input features ("-qb4w"). The other formats are sums of these, exact up to float32 rounding:

* zero points: sum_g s_g (q - z_g) x^ = sum_g s_g q x^ - sum_g (s_g z_g) sum_{i in g} x^_i. The inner sums are an int8
  product of x^ with rows of ones; the outer one is a float product that is as small as the groups are few;
* int8 in groups: q = 16 h + l + 8 with h and l in -8..7, two int4 products with the scales 16 s_g and s_g, and 8 for a
  zero point;
* inputs in two int8 passes: see `pairs`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from planish_passes.infra import PassResult, Refusal
from planish_passes.program import Program, finish, op_name
from planish_passes.quantise import SCALES, VALUES
from planish_passes.quantise import ZEROS as ZERO_POINTS
from planish_targets.executorch.edit import Call, caller, constant, derived, swap
from planish_targets.executorch.operands import no_zeros, operators, rounded, weights
from planish_targets.executorch.pairs import PAIR, Pair, in_pairs, unfit

SHIFTS = ".q_shifts"
SINGLE = "int8_token_asymmetric"
_BLOCK = 32  # groups that XNNPACK takes are multiples of this


@dataclass(frozen=True)
class DynamicLinear:
    """`planish.linear_q` as quantise/dequantise calls around `aten.linear`, which XNNPACK fuses to its kernels.

    Refused, left as they are: groups that are no multiple of 32, widths other than 4 and 8, scales of groups that are
    no bfloat16 numbers, and activations that are rounded in another way.
    """

    def run(self, program: Program) -> PassResult:
        """See the class."""
        changed, refused = 0, []
        singles: dict[fx.Node, fx.Node] = {}
        pairs: dict[fx.Node, Pair] = {}
        for node in [n for n in program.graph.nodes if n.op == "call_function" and op_name(n) == "planish.linear_q"]:
            reason = _unfit(program, node)
            if reason is not None:
                refused.append(Refusal.of(node, reason))
                continue
            paired = node.args[6] == PAIR
            program = in_pairs(program, node, pairs) if paired else _rewrite(program, node, singles)
            changed += 1
        return PassResult(finish(program), changed, tuple(refused))


def _unfit(program: Program, node: fx.Node) -> str | None:
    _, values, scales, _, _, bits, activations = node.args
    assert isinstance(values, fx.Node)
    assert isinstance(scales, fx.Node)
    groups = int(scales.meta["val"].shape[1])
    size = int(values.meta["val"].shape[1]) // groups
    if activations not in (SINGLE, PAIR):
        return f"XNNPACK rounds activations per token to asymmetric int8, the program says {activations!r}"
    if bits not in (4, 8):
        return f"XNNPACK has no kernel for weights of {bits} bits"
    if groups > 1 and size % _BLOCK:
        return f"XNNPACK's int4 kernel takes groups of a multiple of {_BLOCK} input features, not {size}"
    if groups > 1:
        stored = program.weights.read(program.weight_names()[scales.name])
        if not torch.equal(stored.to(torch.bfloat16).to(torch.float32), stored):
            return "XNNPACK stores the scales of groups as bfloat16, and these have more digits"
    return unfit(node) if activations == PAIR else None


def _rewrite(program: Program, node: fx.Node, singles: dict[fx.Node, fx.Node]) -> Program:
    x, values, scales, zeros, bias, _, _ = node.args
    assert isinstance(x, fx.Node)
    assert isinstance(values, fx.Node)
    assert isinstance(scales, fx.Node)
    name = program.weight_names()[values.name].removesuffix(VALUES)
    call, groups = caller(program.graph, node), int(scales.meta["val"].shape[1])
    if x not in singles:
        singles[x] = rounded(call, x)
    linear, add = torch.ops.aten.linear.default, torch.ops.aten.add.Tensor
    program, (first, *others) = weights(program, call, node, name)
    result = call(linear, singles[x], first, *(() if bias is None else (bias,)))
    for weight in others:
        result = call(add, result, call(linear, singles[x], weight))
    if others or zeros is not None:
        program, sums = _sums(program, call, singles[x], int(values.meta["val"].shape[1]), groups)
        program, shifts = _shifts(program, name, zeros is not None, 8 if others else 0)
        result = call(add, result, call(linear, sums, shifts))
    swap(program.graph, node, result)
    return program


def _sums(program: Program, call: Call, x: fx.Node, columns: int, groups: int) -> tuple[Program, fx.Node]:
    """The sums of x over the groups, [..., G], as an int8 product of scale 1."""
    size = columns // groups
    name = f"executorch.ones_{groups}x{size}"
    ones = torch.eye(groups, dtype=torch.int8).repeat_interleave(size, dim=1)
    program, rows = constant(program, name, ones)
    program, unit = constant(program, f"executorch.unit_{groups}", torch.ones(groups))
    program, none = no_zeros(program, (groups,), torch.int64)
    for user in x.users:
        if op_name(user) == "aten.linear" and user.args[1].args[0] is rows:
            return program, user
    weight = call(operators().dequantize_per_channel.default, rows, unit, none, 0, -127, 127, torch.int8)
    return program, call(torch.ops.aten.linear.default, x, weight)


def _shifts(program: Program, name: str, zeros: bool, shift: int) -> tuple[Program, fx.Node]:
    """(shift - zero point) * scale, float32 [N, G]."""
    sources = (name + SCALES, name + ZERO_POINTS) if zeros else (name + SCALES,)

    def shifted(scales: Tensor, zero_points: Tensor | None = None) -> Tensor:
        return scales * (shift if zero_points is None else shift - zero_points.to(torch.float32))

    return derived(program, name + SHIFTS, sources, shifted, program.weights.spec(name + SCALES))
