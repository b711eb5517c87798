"""Decoder composites as operators of com.microsoft."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from planish_targets.onnx_graph.contrib import contrib

PACK = "PackBits"  # stands in the graph until weights are packed; `pack.fold_packing` takes it out
PLANISH = "planish"


def translations() -> dict[Any, Callable[..., Any]]:
    """torch operator -> function that emits ONNX."""
    import torch

    import planish_targets.onnx_graph.decoder_ops  # noqa: F401  (registers the operators)

    ops = torch.ops.planish
    return {
        ops.cache_lengths.default: _cache_lengths,
        ops.group_query_attention.default: _group_query_attention,
        ops.add_rms_norm.default: _add_rms_norm,
        ops.rms_norm.default: _rms_norm,
        ops.gated.default: _gated,
        ops.gated_halves.default: _gated_halves,
        ops.linear_minima.default: _linear_minima,
        ops.embedding_minima.default: _embedding_minima,
    }


def _cache_lengths(slots: Any) -> Any:
    from onnxscript import opset21 as op

    last = op.Cast(op.ReduceMax(slots, op.Constant(value_ints=[1]), keepdims=0), to=6)
    total = op.Add(op.ReduceMax(last, keepdims=1), op.Cast(op.Constant(value_ints=[1]), to=6))
    return last, total


def _group_query_attention(
    q: Any,
    k: Any,
    v: Any,
    past_k: Any,
    past_v: Any,
    last: Any,
    total: Any,
    cos: Any,
    sin: Any,
    scale: float,
    softcap: float,
    window: int,
    heads: int,
    kv_heads: int,
    interleaved: bool,
) -> Any:
    given = [q, k, v, past_k, past_v, last, total] + ([] if cos is None else [cos, sin])
    attributes = {
        "num_heads": int(heads),
        "kv_num_heads": int(kv_heads),
        "scale": float(scale),
        "softcap": float(softcap),
        "local_window_size": int(window) or -1,
        "do_rotary": int(cos is not None),
        "rotary_interleaved": int(interleaved),
    }
    return contrib("GroupQueryAttention", given, attributes, outputs=3)


def _add_rms_norm(x: Any, skip: Any, weight: Any, eps: float) -> Any:
    normed, _, _, total = contrib(
        "SkipSimplifiedLayerNormalization", [x, skip, weight], {"epsilon": float(eps)}, outputs=4
    )
    return normed, total


def _rms_norm(x: Any, weight: Any, eps: float) -> Any:
    from onnxscript import opset21 as op

    if weight is None:
        square = op.ReduceMean(op.Mul(x, x), op.Constant(value_ints=[-1]), keepdims=1)
        return op.Div(x, op.Sqrt(op.Add(square, op.Constant(value_float=float(eps)))))
    return contrib("SimplifiedLayerNormalization", [x, weight], {"axis": -1, "epsilon": float(eps)}, domain="")


def _gated(gate: Any, up: Any, activation: str) -> Any:
    from onnxscript import opset21 as op

    if activation == "silu":
        return op.Mul(contrib("QuickGelu", [gate], {"alpha": 1.0}), up)
    if activation in ("relu", "sigmoid"):
        return op.Mul(op.Relu(gate) if activation == "relu" else op.Sigmoid(gate), up)
    return op.Mul(op.Gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none"), up)


def _gated_halves(x: Any, activation: str, up_first: bool) -> Any:
    from onnxscript import opset21 as op

    first, second = op.Split(x, axis=-1, num_outputs=2)
    return _gated(second, first, activation) if up_first else _gated(first, second, activation)


def _linear_minima(x: Any, minima: Any) -> Any:
    # A float zero point of MatMulNBits would say the same: its kernel then unpacks the whole weight at every call.
    from onnxscript import opset21 as op

    groups = int(minima.shape[1])
    split = op.Reshape(x, op.Constant(value_ints=[*[0] * (len(x.shape) - 1), groups, int(x.shape[-1]) // groups]))
    sums = op.ReduceSum(split, op.Constant(value_ints=[-1]), keepdims=0)
    return op.MatMul(sums, op.Transpose(minima, perm=[1, 0]))


def _embedding_minima(ids: Any, minima: Any, columns: int) -> Any:
    # Columns of the very tensor that a tied head multiplies with.
    from onnxscript import opset21 as op

    rank, groups = len(ids.shape), int(minima.shape[1])
    found = op.Gather(op.Transpose(minima, perm=[1, 0]), ids, axis=1)
    found = op.Unsqueeze(op.Transpose(found, perm=[*range(1, rank + 1), 0]), op.Constant(value_ints=[-1]))
    tiled = op.Tile(found, op.Constant(value_ints=[*[1] * (rank + 1), int(columns) // groups]))
    return op.Reshape(tiled, op.Constant(value_ints=[*[0] * rank, int(columns)]))


def matmul_nbits(
    x: Any,
    weight: Any,
    scales: Any,
    zeros: Any,
    bias: Any,
    bits: int,
    shape: tuple[int, int, int],
    exact: bool = False,
) -> Any:
    """com.microsoft::MatMulNBits.

    Args:
        shape: output features, input features, groups.
        exact: kernels that compute with float32 inputs, instead of those that round inputs to int8 by the same groups.
    """
    rows, columns, groups = shape
    packed = contrib(PACK, [weight], {"bits": bits, "group": columns // groups}, domain=PLANISH)
    points = None if zeros is None else contrib(PACK, [zeros], {"bits": bits, "group": 0}, domain=PLANISH)
    attributes = {"K": columns, "N": rows, "bits": bits, "block_size": columns // groups}
    attributes["accuracy_level"] = 1 if exact else 4
    return contrib("MatMulNBits", [x, packed, scales, points, None, bias], attributes)


def gather_nbits(ids: Any, weight: Any, scales: Any, zeros: Any, bits: int, group: int) -> Any:
    """com.microsoft::GatherBlockQuantized over the very tensor of `matmul_nbits`, so that a tied head costs nothing.

    The kernel wants scales of the integers' rank (3, here), the other one rank 2.
    """
    from onnxscript import opset21 as op

    packed = contrib(PACK, [weight], {"bits": bits, "group": group}, domain=PLANISH)
    factors = contrib(PACK, [scales], {"bits": bits, "group": -1}, domain=PLANISH)
    points = None if zeros is None else contrib(PACK, [zeros], {"bits": bits, "group": -1}, domain=PLANISH)
    attributes = {"bits": bits, "block_size": group, "gather_axis": 0, "quantize_axis": 2}
    rows = contrib("GatherBlockQuantized", [packed, ids, factors, points], attributes)
    return op.Reshape(rows, op.Constant(value_ints=[*[0] * len(ids.shape), int(weight.shape[1])]))
