"""Quantised composites in the form that ONNX Runtime's CPU kernels run fastest.

A linear becomes: activations to uint8 with one scale per token, `MatMulIntegerToFloat`, bias. One thread against
float, hand-built graphs: 1.7x; `MatMulNBits` at 8 bits, the usual choice: 1.26x (docs/decisions/0004).
The bias stays a node of its own: with a bias input the kernel adds it before the per-token scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from planish_passes.ops import GELU_LOW
from planish_targets.onnx_graph import decoder
from planish_targets.onnx_graph.contrib import contrib

_TINY = 1e-10  # keeps a row of zeros from dividing by zero


def translations() -> dict[Any, Callable[..., Any]]:
    """torch operator -> function that emits ONNX."""
    import torch

    return {
        torch.ops.planish.linear_q.default: _linear_q,
        torch.ops.planish.embedding_q.default: _embedding_q,
        **decoder.translations(),
    }


def _linear_q(x: Any, weight: Any, scales: Any, zero_points: Any, bias: Any, bits: int, activations: str) -> Any:
    from onnxscript import opset21 as op

    groups = int(scales.shape[1])
    if groups > 1 or bits < 8:
        shape = (int(weight.shape[0]), int(weight.shape[1]), groups)
        return decoder.matmul_nbits(x, weight, scales, zero_points, bias, bits, shape, activations == "none")
    matrix = op.Transpose(weight, perm=[1, 0])
    factors = op.Reshape(scales, [-1])
    if activations == "none":
        wide = op.Mul(op.Cast(matrix, to=1), factors)
        y = op.MatMul(x, wide)
    elif activations == "uint8_token_after_gelu":
        y, offset = _after_gelu(op, x, matrix, factors)
        bias = op.Neg(offset) if bias is None else op.Sub(bias, offset)
    else:
        y = _symmetric(op, x, matrix, factors, residual=activations == "int8_token_residual")
    return y if bias is None else op.Add(y, bias)


def _middle(op: Any) -> Any:
    import onnx

    return op.Constant(value=onnx.helper.make_tensor("middle", onnx.TensorProto.UINT8, [], [128]))


def _symmetric(op: Any, x: Any, matrix: Any, factors: Any, *, residual: bool) -> Any:
    top = op.Max(op.ReduceMax(op.Abs(x), [-1], keepdims=1), _TINY)
    scaled, scale, middle = op.Mul(x, op.Div(127.0, top)), op.Mul(top, 1.0 / 127.0), _middle(op)
    high = op.QuantizeLinear(scaled, 1.0, middle)
    if not residual:
        return contrib("MatMulIntegerToFloat", [high, matrix, scale, factors, middle])
    lost = op.Sub(scaled, op.DequantizeLinear(high, 1.0, middle))
    low = op.QuantizeLinear(lost, 1.0 / 254.0, middle)
    one = op.Constant(value_float=1.0)
    step = op.Constant(value_float=1.0 / 254.0)
    coarse = contrib("MatMulIntegerToFloat", [high, matrix, one, factors, middle])
    fine = contrib("MatMulIntegerToFloat", [low, matrix, step, factors, middle])
    return op.Mul(op.Add(coarse, fine), scale)


def _after_gelu(op: Any, x: Any, matrix: Any, factors: Any) -> tuple[Any, Any]:
    """The product with the shifted input, and what the shift added to every row: a constant, folded at load."""
    import onnx

    zero = op.Constant(value=onnx.helper.make_tensor("zero", onnx.TensorProto.UINT8, [], [0]))
    shifted = op.Add(x, GELU_LOW)
    top = op.Max(op.ReduceMax(shifted, [-1], keepdims=1), _TINY)
    codes = op.QuantizeLinear(op.Mul(shifted, op.Div(255.0, top)), 1.0, zero)
    y = contrib("MatMulIntegerToFloat", [codes, matrix, op.Mul(top, 1.0 / 255.0), factors])
    sums = op.ReduceSum(op.Cast(matrix, to=1), [0], keepdims=0)
    return y, op.Mul(op.Mul(sums, factors), GELU_LOW)


def _embedding_q(ids: Any, weight: Any, scales: Any, zero_points: Any, bits: int) -> Any:
    from onnxscript import opset21 as op

    if int(scales.shape[1]) > 1 or bits < 8:
        group = int(weight.shape[1]) // int(scales.shape[1])
        return decoder.gather_nbits(ids, weight, scales, zero_points, bits, group)
    return op.Mul(op.Cast(op.Gather(weight, ids), to=1), op.Gather(scales, ids))
