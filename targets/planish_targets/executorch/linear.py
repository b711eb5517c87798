"""Quantised linears in the forms that XNNPACK runs with its int8 and int4 kernels.

XNNPACK multiplies per-token asymmetric int8 activations (x^: what rounding leaves of x) with symmetric weights: int8
or int4 with a scale per output channel ("qd8-f32-qc8w", "-qc4w"), or int4 with a bfloat16 scale per group of 32, 64,
... input features ("-qb4w"). The other formats are sums of these, exact up to float32 rounding:

* zero points: sum_g s_g (q - z_g) x^ = sum_g s_g q x^ - sum_g (s_g z_g) sum_{i in g} x^_i. The inner sums are an int8
  product of x^ with rows of ones; the outer one is a float product that is as small as the groups are few;
* int8 in groups: q = 16 h + l + 8 with h and l in -8..7, two int4 products with the scales 16 s_g and s_g, and 8 for a
  zero point.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from planish_passes.infra import PassResult, Refusal
from planish_passes.program import Program, finish, op_name
from planish_passes.quantise import SCALES, VALUES
from planish_passes.quantise import ZEROS as ZERO_POINTS
from planish_passes.weights import TensorSpec
from planish_targets.executorch.edit import Call, caller, constant, derived, swap

CHANNEL_SCALES, HIGH, LOW = ".q_channel_scales", ".q_high", ".q_low"
HIGH_SCALES, SHIFTS = ".q_high_scales", ".q_shifts"
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
        rounded: dict[fx.Node, fx.Node] = {}
        for node in [n for n in program.graph.nodes if n.op == "call_function" and op_name(n) == "planish.linear_q"]:
            reason = _unfit(program, node)
            if reason is not None:
                refused.append(Refusal.of(node, reason))
                continue
            program = _rewrite(program, node, rounded)
            changed += 1
        return PassResult(finish(program), changed, tuple(refused))


def _unfit(program: Program, node: fx.Node) -> str | None:
    _, values, scales, _, _, bits, activations = node.args
    assert isinstance(values, fx.Node)
    assert isinstance(scales, fx.Node)
    groups = int(scales.meta["val"].shape[1])
    size = int(values.meta["val"].shape[1]) // groups
    if activations != "int8_token_asymmetric":
        return f"XNNPACK rounds activations per token to asymmetric int8, the program says {activations!r}"
    if bits not in (4, 8):
        return f"XNNPACK has no kernel for weights of {bits} bits"
    if groups > 1 and size % _BLOCK:
        return f"XNNPACK's int4 kernel takes groups of a multiple of {_BLOCK} input features, not {size}"
    if groups > 1:
        stored = program.weights.read(program.weight_names()[scales.name])
        if not torch.equal(stored.to(torch.bfloat16).to(torch.float32), stored):
            return "XNNPACK stores the scales of groups as bfloat16, and these have more digits"
    return None


def _rewrite(program: Program, node: fx.Node, rounded: dict[fx.Node, fx.Node]) -> Program:
    x, values, scales, zeros, bias, bits, _ = node.args
    assert isinstance(x, fx.Node)
    assert isinstance(values, fx.Node)
    assert isinstance(scales, fx.Node)
    name = program.weight_names()[values.name].removesuffix(VALUES)
    call, groups = caller(program.graph, node), int(scales.meta["val"].shape[1])
    if x not in rounded:
        rounded[x] = _round(call, x)
    linear = torch.ops.aten.linear.default
    halves = bits == 8 and groups > 1
    program, weight = _halved(program, name, call, low=True) if halves else _whole(program, name, call, node)
    result = call(linear, rounded[x], weight, *(() if bias is None else (bias,)))
    if halves:
        program, weight = _halved(program, name, call, low=False)
        result = call(torch.ops.aten.add.Tensor, result, call(linear, rounded[x], weight))
    if halves or zeros is not None:
        program, sums = _sums(program, call, rounded[x], int(values.meta["val"].shape[1]), groups)
        program, shifts = _shifts(program, name, zeros is not None, 8 if halves else 0)
        result = call(torch.ops.aten.add.Tensor, result, call(linear, sums, shifts))
    swap(program.graph, node, result)
    return program


def _round(call: Call, x: fx.Node) -> fx.Node:
    ops = operators()
    chosen = call(ops.choose_qparams_per_token_asymmetric.default, x, torch.int8)
    scale, zero = call(operator.getitem, chosen, 0), call(operator.getitem, chosen, 1)
    integers = call(ops.quantize_per_token.default, x, scale, zero, -128, 127, torch.int8)
    return call(ops.dequantize_per_token.default, integers, scale, zero, -128, 127, torch.int8, torch.float32)


def _whole(program: Program, name: str, call: Call, node: fx.Node) -> tuple[Program, fx.Node]:
    """The weight in one piece: per channel, or 4 bits in groups."""
    _, values, scales, _, _, bits, _ = node.args
    assert isinstance(values, fx.Node)
    assert isinstance(scales, fx.Node)
    rows, groups = (int(s) for s in scales.meta["val"].shape)
    low, high = (-8, 7) if bits == 4 else (-127, 127)
    if groups > 1:
        return _grouped(program, values, scales, call)
    spec = TensorSpec((rows,), torch.float32)
    program, factors = derived(program, name + CHANNEL_SCALES, (name + SCALES,), lambda s: s.reshape(-1), spec)
    program, none = _none(program, (rows,), torch.int64)
    per_channel = operators().dequantize_per_channel.default
    return program, call(per_channel, values, factors, none, 0, low, high, torch.int8)


def _grouped(program: Program, values: fx.Node, scales: fx.Node, call: Call) -> tuple[Program, fx.Node]:
    groups = int(scales.meta["val"].shape[1])
    size = int(values.meta["val"].shape[1]) // groups
    program, none = _none(program, tuple(scales.meta["val"].shape), torch.int8)
    per_group = operators().dequantize_per_channel_group.default
    return program, call(per_group, values, scales, none, -8, 7, torch.int8, size, torch.float32)


def _halved(program: Program, name: str, call: Call, *, low: bool) -> tuple[Program, fx.Node]:
    """One half of the bits of an int8 weight, as a weight of 4 bits."""
    store = program.weights
    take, scale = (low_half, lambda s: s) if low else (high_half, lambda s: s * 16)
    at, factors = (LOW, SCALES) if low else (HIGH, HIGH_SCALES)
    program, values = derived(program, name + at, (name + VALUES,), take, store.spec(name + VALUES))
    program, scales = derived(program, name + factors, (name + SCALES,), scale, store.spec(name + SCALES))
    return _grouped(program, values, scales, call)


def high_half(values: Tensor) -> Tensor:
    """floor(q / 16), in -8..7."""
    return values >> 4


def low_half(values: Tensor) -> Tensor:
    """q mod 16 - 8, in -8..7."""
    return (values & 15) - 8


def _sums(program: Program, call: Call, x: fx.Node, columns: int, groups: int) -> tuple[Program, fx.Node]:
    """The sums of x over the groups, [..., G], as an int8 product of scale 1."""
    size = columns // groups
    name = f"executorch.ones_{groups}x{size}"
    ones = torch.eye(groups, dtype=torch.int8).repeat_interleave(size, dim=1)
    program, rows = constant(program, name, ones)
    program, unit = constant(program, f"executorch.unit_{groups}", torch.ones(groups))
    program, none = _none(program, (groups,), torch.int64)
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


def _none(program: Program, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Program, fx.Node]:
    """Zero points that are all 0; XNNPACK wants some, and writes none."""
    name = f"executorch.no_zeros_{'x'.join(str(s) for s in shape)}"
    return constant(program, name, torch.zeros(shape, dtype=dtype))


def operators() -> Any:
    """The namespace of the quantise and dequantise operators, which an import registers."""
    import torch.ao.quantization.fx._decomposed

    return torch.ops.quantized_decomposed
