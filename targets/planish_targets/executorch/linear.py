"""Quantised linears in the form that XNNPACK runs with its int8 kernels."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from planish_passes.infra import PassResult, Refusal
from planish_passes.program import Program, add_weight, finish, op_name
from planish_passes.quantise import SCALES, VALUES
from planish_passes.weights import TensorSpec
from planish_targets.executorch.edit import caller, swap

CHANNEL_SCALES, ZEROS = ".q_channel_scales", ".q_zeros"


@dataclass(frozen=True)
class DynamicLinear:
    """`planish.linear_q` as quantise/dequantise calls around `aten.linear`, which XNNPACK fuses to one int8 kernel.

    The pattern is per-token asymmetric int8 activations times per-channel symmetric int8 weights ("qd8-f32-qc8w").
    Refused, left as they are: weights with one scale per group, with zero points or of another width, and activations
    that are rounded in another way.
    """

    def run(self, program: Program) -> PassResult:
        """See the class."""
        changed, refused = 0, []
        for node in [n for n in program.graph.nodes if n.op == "call_function" and op_name(n) == "planish.linear_q"]:
            reason = _unfit(node)
            if reason is not None:
                refused.append(Refusal.of(node, reason))
                continue
            program = _rewrite(program, node)
            changed += 1
        return PassResult(finish(program), changed, tuple(refused))


def _unfit(node: fx.Node) -> str | None:
    _, _, scales, zero_points, _, bits, activations = node.args
    assert isinstance(scales, fx.Node)
    if scales.meta["val"].shape[1] != 1:
        return "XNNPACK's int8 kernel takes one scale per output channel, not one per group"
    if zero_points is not None:
        return "XNNPACK's int8 kernel takes symmetric weights only"
    if bits != 8:
        return f"weights of {bits} bits are not encoded for XNNPACK yet"
    if activations != "int8_token_asymmetric":
        return f"XNNPACK rounds activations per token to asymmetric int8, the program says {activations!r}"
    return None


def _rewrite(program: Program, node: fx.Node) -> Program:
    x, values, _, _, bias, _, _ = node.args
    assert isinstance(x, fx.Node)
    assert isinstance(values, fx.Node)
    name = program.weight_names()[values.name].removesuffix(VALUES)
    program, scales, zeros = _channel_constants(program, name, values)
    call, ops = caller(program.graph, node), _operators()
    chosen = call(ops.choose_qparams_per_token_asymmetric.default, x, torch.int8)
    scale, zero = call(operator.getitem, chosen, 0), call(operator.getitem, chosen, 1)
    integers = call(ops.quantize_per_token.default, x, scale, zero, -128, 127, torch.int8)
    rounded = call(ops.dequantize_per_token.default, integers, scale, zero, -128, 127, torch.int8, torch.float32)
    weight = call(ops.dequantize_per_channel.default, values, scales, zeros, 0, -127, 127, torch.int8)
    arguments = (rounded, weight) if bias is None else (rounded, weight, bias)
    swap(program.graph, node, call(torch.ops.aten.linear.default, *arguments))
    return program


def _channel_constants(program: Program, name: str, values: fx.Node) -> tuple[Program, fx.Node, fx.Node]:
    """Scales as [N] and zero points as int64 [N], the types that the quantise/dequantise operators want."""
    nodes = {w: n for n in program.graph.nodes if (w := program.weight_of(n)) is not None}
    if name + CHANNEL_SCALES in nodes:
        return program, nodes[name + CHANNEL_SCALES], nodes[name + ZEROS]
    rows = int(values.meta["val"].shape[0])
    store = program.weights.derive(
        name + CHANNEL_SCALES, (name + SCALES,), lambda s: s.reshape(-1), TensorSpec((rows,), torch.float32)
    )
    store = store.with_lazy(
        name + ZEROS, TensorSpec((rows,), torch.int64), lambda: torch.zeros(rows, dtype=torch.int64)
    )
    program = replace(program, weights=store)
    with values.meta["val"].fake_mode:
        scales = add_weight(program, name + CHANNEL_SCALES, torch.empty(rows, dtype=torch.float32))
        zeros = add_weight(program, name + ZEROS, torch.empty(rows, dtype=torch.int64))
    return program, scales, zeros


def _operators() -> Any:
    import torch.ao.quantization.fx._decomposed  # registers the operators

    return torch.ops.quantized_decomposed
