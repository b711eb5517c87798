"""Operators whose ONNX form on DirectML is not the exporter's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from planish_targets.onnx_graph.contrib import contrib


def translations() -> dict[Any, Callable[..., Any]]:
    """torch operator -> function that emits ONNX."""
    import torch

    return {
        torch.ops.planish.linear_q.default: _linear_q,
        torch.ops.planish.embedding_q.default: _embedding_q,
        torch.ops.aten.gelu.default: _gelu,
        torch.ops.aten.hardswish.default: _hardswish,
    }


def _linear_q(x: Any, weight: Any, scales: Any, zero_points: Any, bias: Any, bits: int, activations: str) -> Any:
    # Not DequantizeLinear: ONNX Runtime leaves it to the device, whose opset-21 kernel ended the process on one GPU
    # (int8 in blocks, Intel Arc A380, 1.24.4) and computes wrong values for broadcast scales (onnxruntime#26530).
    # These operators on constants are folded on the CPU when the session loads; the device sees float16 weights.
    from onnxscript import opset21 as op

    real = op.Mul(op.Cast(weight, to=1), scales)
    y = op.MatMul(x, op.Transpose(real, perm=[1, 0]))
    return y if bias is None else op.Add(y, bias)


def _embedding_q(ids: Any, weight: Any, scales: Any, zero_points: Any, bits: int) -> Any:
    from onnxscript import opset21 as op

    return op.Mul(op.Cast(op.Gather(weight, ids), to=1), op.Gather(scales, ids))


def _gelu(x: Any, approximate: str = "none") -> Any:
    if approximate == "none":
        return contrib("Gelu", [x])
    # Not FastGelu: DirectML's kernel of that name computes the erf form (source: DmlOperatorBiasGelu.cpp).
    from onnxscript import opset21 as op

    cube = op.Mul(op.Mul(x, x), x)
    inner = op.Mul(op.Add(x, op.Mul(cube, 0.044715)), math.sqrt(2 / math.pi))
    return op.Mul(op.Mul(x, 0.5), op.Add(op.Tanh(inner), 1.0))


def _hardswish(x: Any) -> Any:
    # ai.onnx HardSwish has no DirectML kernel.
    from onnxscript import opset21 as op

    return op.Mul(x, op.HardSigmoid(x, alpha=1 / 6, beta=0.5))
