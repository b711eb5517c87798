"""Operands of XNNPACK's int8 and int4 kernels: weights as they are stored, and activations rounded per token."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from planish_passes.program import Program
from planish_passes.quantise import SCALES, VALUES
from planish_passes.weights import TensorSpec
from planish_targets.executorch.edit import Call, constant, derived

CHANNEL_SCALES, HIGH, LOW, HIGH_SCALES = ".q_channel_scales", ".q_high", ".q_low", ".q_high_scales"


def rounded(call: Call, x: fx.Node) -> fx.Node:
    """x as per-token asymmetric int8, floating point again: XNNPACK's kernels take it before the last step."""
    ops = operators()
    chosen = call(ops.choose_qparams_per_token_asymmetric.default, x, torch.int8)
    scale, zero = call(operator.getitem, chosen, 0), call(operator.getitem, chosen, 1)
    integers = call(ops.quantize_per_token.default, x, scale, zero, -128, 127, torch.int8)
    return call(ops.dequantize_per_token.default, integers, scale, zero, -128, 127, torch.int8, torch.float32)


def weights(program: Program, call: Call, node: fx.Node, name: str) -> tuple[Program, list[fx.Node]]:
    """The weight of a `planish.linear_q`: one operand, or two whose products are added (int8 in groups)."""
    bits, groups = node.args[5], node.args[2].meta["val"].shape[1]  # type: ignore[union-attr]
    if bits == 8 and groups > 1:
        program, low = _halved(program, name, call, low=True)
        program, high = _halved(program, name, call, low=False)
        return program, [low, high]
    program, whole = _whole(program, name, call, node)
    return program, [whole]


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
    program, none = no_zeros(program, (rows,), torch.int64)
    per_channel = operators().dequantize_per_channel.default
    return program, call(per_channel, values, factors, none, 0, low, high, torch.int8)


def _grouped(program: Program, values: fx.Node, scales: fx.Node, call: Call) -> tuple[Program, fx.Node]:
    groups = int(scales.meta["val"].shape[1])
    size = int(values.meta["val"].shape[1]) // groups
    program, none = no_zeros(program, tuple(scales.meta["val"].shape), torch.int8)
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


def no_zeros(program: Program, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Program, fx.Node]:
    """Zero points that are all 0; XNNPACK wants some, and writes none."""
    name = f"executorch.no_zeros_{'x'.join(str(s) for s in shape)}"
    return constant(program, name, torch.zeros(shape, dtype=dtype))


def operators() -> Any:
    """The namespace of the quantise and dequantise operators, which an import registers."""
    import torch.ao.quantization.fx._decomposed

    return torch.ops.quantized_decomposed
