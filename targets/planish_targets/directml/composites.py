"""Operators whose ONNX form on DirectML is not the exporter's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from planish_targets.onnx_graph.contrib import contrib
from planish_targets.onnx_graph.decoder import PACK, PLANISH

MIDDLES = "Middles"  # stands in the graph for zero points of 8; `points.fold_middles` takes it out
_FLOAT = 1  # TensorProto.FLOAT; what becomes float16 is decided later
BLOCKS = frozenset((16, 32, 64, 128, 256))  # block sizes of MatMulNBits


def translations() -> dict[Any, Callable[..., Any]]:
    """torch operator -> function that emits ONNX."""
    import torch

    import planish_targets.directml.decoder_form  # noqa: F401  (registers rotary_rows)
    from planish_targets.onnx_graph import decoder

    shared = decoder.translations()
    ops = torch.ops.planish
    kept = (
        *(ops.cache_lengths.default, ops.add_rms_norm.default, ops.rms_norm.default),
        *(ops.linear_minima.default, ops.embedding_minima.default),
    )
    return {
        **{op: shared[op] for op in kept},
        ops.linear_q.default: _linear_q,
        ops.embedding_q.default: _embedding_q,
        ops.group_query_attention.default: _group_query_attention,
        ops.rotary_rows.default: _rotary_rows,
        ops.gated.default: _gated,
        torch.ops.aten.gelu.default: _gelu,
        torch.ops.aten.hardswish.default: _hardswish,
    }


# --- quantised weights ---


def _linear_q(x: Any, weight: Any, scales: Any, zero_points: Any, bias: Any, bits: int, activations: str) -> Any:
    from onnxscript import opset21 as op

    y = _matmul_4bit(x, weight, scales, zero_points) if bits == 4 else _matmul_8bit(x, weight, scales, zero_points)
    return y if bias is None else op.Add(y, bias)


def _matmul_8bit(x: Any, weight: Any, scales: Any, zero_points: Any) -> Any:
    # Not DequantizeLinear: ONNX Runtime leaves it to the device, whose opset-21 kernel ended the process on one GPU
    # (int8 in blocks, Intel Arc A380, 1.24.4) and computes wrong values for broadcast scales (onnxruntime#26530).
    # These operators on constants are folded on the CPU when the session loads; the device sees float16 weights.
    from onnxscript import opset21 as op

    rows, columns = (int(n) for n in weight.shape)
    groups = int(scales.shape[1])
    real = op.Cast(weight, to=_FLOAT)
    if groups == 1 and zero_points is None:
        real = op.Mul(real, scales)
    else:
        real = op.Reshape(real, [rows, groups, columns // groups])
        if zero_points is not None:
            real = op.Sub(real, op.Unsqueeze(op.Cast(zero_points, to=_FLOAT), [-1]))
        real = op.Reshape(op.Mul(real, op.Unsqueeze(scales, [-1])), [rows, columns])
    return op.MatMul(x, op.Transpose(real, perm=[1, 0]))


def _matmul_4bit(x: Any, weight: Any, scales: Any, zero_points: Any) -> Any:
    # Zero points are always given: without them the kernel subtracts nothing, where the operator's definition says 8
    # (source: DmlOperatorMatMulNBits.cpp dequantises by scale alone then).
    rows, columns, groups = int(weight.shape[0]), int(weight.shape[1]), int(scales.shape[1])
    packed, points = _packed(weight, columns // groups), _points(zero_points, rows, groups)
    attributes = {"K": columns, "N": rows, "bits": 4, "block_size": columns // groups}
    return contrib("MatMulNBits", [x, packed, scales, points], attributes)


def _packed(weight: Any, group: int) -> Any:
    return contrib(PACK, [weight], {"bits": 4, "group": group}, domain=PLANISH)


def _points(zero_points: Any, rows: int, groups: int) -> Any:
    if zero_points is not None:
        return contrib(PACK, [zero_points], {"bits": 4, "group": 0}, domain=PLANISH)
    return contrib(MIDDLES, [], {"rows": rows, "columns": -(-groups // 2)}, domain=PLANISH)


def _embedding_q(ids: Any, weight: Any, scales: Any, zero_points: Any, bits: int) -> Any:
    from onnxscript import opset21 as op

    columns, groups = int(weight.shape[1]), int(scales.shape[1])
    factors = op.Gather(scales, ids)
    if bits == 8 and groups == 1 and zero_points is None:
        return op.Mul(op.Cast(op.Gather(weight, ids), to=_FLOAT), factors)
    lead, group = [0] * len(ids.shape), columns // groups
    if bits == 4:  # rows of the very bytes that a tied head multiplies with
        codes = op.Reshape(_halves(op.Gather(_packed(weight, group), ids)), [*lead, groups, group])
    else:
        codes = op.Reshape(op.Gather(weight, ids), [*lead, groups, group])
    real = op.Cast(codes, to=_FLOAT)
    if zero_points is not None:
        real = op.Sub(real, op.Unsqueeze(_gathered_points(ids, zero_points, groups, lead, bits), [-1]))
    elif bits == 4:
        real = op.Sub(real, 8.0)
    return op.Reshape(op.Mul(real, op.Unsqueeze(factors, [-1])), [*lead, columns])


def _gathered_points(ids: Any, zero_points: Any, groups: int, lead: list[int], bits: int) -> Any:
    from onnxscript import opset21 as op

    if bits == 8:
        return op.Cast(op.Gather(zero_points, ids), to=_FLOAT)
    pairs = op.Reshape(_halves(op.Gather(_points(zero_points, 0, groups), ids)), [*lead, groups + groups % 2])
    codes = op.Slice(pairs, [0], [groups], [-1]) if groups % 2 else pairs
    return op.Cast(codes, to=_FLOAT)


def _halves(packed: Any) -> Any:
    """uint8 [..., K / 2] to [..., K / 2, 2]: low and high four bits of each byte."""
    import onnx
    from onnxscript import opset21 as op

    mask, places = (
        op.Constant(value=onnx.helper.make_tensor(name, onnx.TensorProto.UINT8, [], [number]))
        for name, number in (("mask", 15), ("places", 4))
    )
    low, high = op.BitwiseAnd(packed, mask), op.BitShift(packed, places, direction="RIGHT")
    return op.Concat(op.Unsqueeze(low, [-1]), op.Unsqueeze(high, [-1]), axis=-1)


# --- attention ---


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
    assert (cos, softcap, window) == (None, 0, 0), "PlainAttention and DecoderForm see to it"
    attributes = {"num_heads": int(heads), "kv_num_heads": int(kv_heads), "scale": float(scale)}
    return contrib("GroupQueryAttention", [q, k, v, past_k, past_v, last, total], attributes, outputs=3)


def _rotary_rows(x: Any, positions: Any, cos: Any, sin: Any, heads: int, interleaved: bool) -> Any:
    # Channels that are not rotated are cut off here: versions of the kernel differ in what they make of num_heads and
    # rotary_embedding_dim, and all agree on rows of whole heads.
    from onnxscript import opset21 as op

    width, turned = int(x.shape[2]) // heads, 2 * int(cos.shape[1])
    attributes = {"interleaved": int(interleaved)}
    if width == turned:
        return contrib("RotaryEmbedding", [x, positions, cos, sin], attributes)
    apart = op.Reshape(x, [0, 0, heads, width])
    first = op.Reshape(op.Slice(apart, [0], [turned], [-1]), [0, 0, heads * turned])
    first = contrib("RotaryEmbedding", [first, positions, cos, sin], attributes)
    rest = op.Slice(apart, [turned], [width], [-1])
    joined = op.Concat(op.Reshape(first, [0, 0, heads, turned]), rest, axis=-1)
    return op.Reshape(joined, [0, 0, heads * width])


# --- activations ---


def _gated(gate: Any, up: Any, activation: str) -> Any:
    from onnxscript import opset21 as op

    forms: dict[str, Callable[[Any], Any]] = {
        "silu": lambda x: contrib("QuickGelu", [x], {"alpha": 1.0}),
        "gelu": _gelu,
        "gelu_tanh": lambda x: _gelu(x, "tanh"),
        "relu": op.Relu,
        "sigmoid": op.Sigmoid,
    }
    return op.Mul(forms[activation](gate), up)


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
