"""Layers: linear, quantised linear, convolution, normalisation, pooling, attention."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from planish_passes.program import op_name
from planish_passes.quantise import VALUES
from planish_targets.coreml.emit.emitter import Emitter, Var, arguments, emits, shape_of
from planish_targets.coreml.sdk import HALF_MAX

_HALF_TINY = 2.0**-24  # the smallest positive fp16 number


@emits("aten.linear", "aten.addmm")
def linear(e: Emitter, node: fx.Node) -> Var:
    """x @ w^T + b; a weight that is computed at run time makes it a matmul."""
    if op_name(node) == "aten.addmm":
        given = arguments(node)
        product = e.mb.matmul(x=e.value(given["mat1"]), y=e.value(given["mat2"]))
        if (given["beta"], given["alpha"]) != (1, 1):
            raise e.refusal(node, "factors on its terms")
        return e.mb.add(x=product, y=e.value(given["self"]), name=node.name)
    given = arguments(node)
    return _linear(e, node, e.value(given["input"]), e.value(given["weight"]), given["bias"])


@emits("planish.linear_q")
def linear_q(e: Emitter, node: fx.Node) -> Var:
    """A linear whose weight is a decompressing operation; activations stay floating point."""
    given = arguments(node)
    if given["zero_points"] is not None:
        raise e.refusal(node, "zero points are not supported yet")
    if given["activations"] != "none":
        raise e.refusal(node, f"activations {given['activations']}")
    return _linear(e, node, e.value(given["x"]), quantized_weight(e, given["weight"], given["scales"]), given["bias"])


def quantized_weight(e: Emitter, values: fx.Node, scales: fx.Node) -> Var:
    """The decompressing operation of a quantised weight, one for all its uses."""
    names = e.program.weight_names()
    integers = names[values.name]
    return e.decompressed(integers.removesuffix(VALUES), integers, names[scales.name])


def _linear(e: Emitter, node: fx.Node, x: Var, weight: Var, bias: fx.Node | None) -> Var:
    constant = weight.op is not None and weight.op.op_type in ("const", "constexpr_blockwise_shift_scale")
    offset = None if bias is None else e.value(bias)
    if constant and (offset is None or offset.val is not None):
        return e.mb.linear(x=x, weight=weight, name=node.name, **({} if offset is None else {"bias": offset}))
    product = e.mb.matmul(x=x, y=weight, transpose_y=True, **({"name": node.name} if offset is None else {}))
    return product if offset is None else e.mb.add(x=product, y=offset, name=node.name)


@emits("aten.matmul", "aten.bmm", "aten.mm")
def matmul(e: Emitter, node: fx.Node) -> Var:
    """Matrix product; batch axes broadcast."""
    return e.mb.matmul(x=e.value(node.args[0]), y=e.value(node.args[1]), name=node.name)


@emits("aten.conv1d", "aten.conv2d", "aten.conv3d")
def conv(e: Emitter, node: fx.Node) -> Var:
    """Convolution with zero padding."""
    given = arguments(node)
    weight = e.value(given["weight"])
    axes = len(weight.shape) - 2
    padding = given["padding"]
    if isinstance(padding, str):
        placement: dict[str, Any] = {"pad_type": padding}
    else:
        placement = {"pad_type": "custom", "pad": [p for p in _each(padding, axes) for _ in (0, 1)]}
    offset = {} if given["bias"] is None else {"bias": e.value(given["bias"])}
    return e.mb.conv(
        x=e.value(given["input"]),
        weight=weight,
        strides=_each(given["stride"], axes),
        dilations=_each(given["dilation"], axes),
        groups=int(given["groups"]),
        name=node.name,
        **placement,
        **offset,
    )


def _each(sizes: Any, axes: int) -> list[int]:
    listed = [int(sizes)] if isinstance(sizes, int) else [int(s) for s in sizes]
    return listed * axes if len(listed) == 1 else listed


@emits("aten.layer_norm", "aten.native_layer_norm")
def layer_norm(e: Emitter, node: fx.Node) -> Any:
    """Layer normalisation over the last axes."""
    given = arguments(node)
    affine = {k: e.value(given[s]) for k, s in (("gamma", "weight"), ("beta", "bias")) if given[s] is not None}
    axes = list(range(-len(given["normalized_shape"]), 0))
    epsilon = _epsilon(e, given["eps"])
    result = e.mb.layer_norm(x=e.value(given["input"]), axes=axes, epsilon=epsilon, name=node.name, **affine)
    return (result, None, None) if op_name(node) == "aten.native_layer_norm" else result


def _epsilon(e: Emitter, epsilon: float) -> Any:
    # An epsilon that rounds to 0 in fp16 would make a constant row 0 / 0.
    if 0 < epsilon < _HALF_TINY:
        e.note(f"epsilon {epsilon:g} of a normalisation is below fp16; it is stored as the smallest fp16 number, 2^-24")
        epsilon = _HALF_TINY
    return np.float32(epsilon)


@emits("aten.batch_norm", "aten._native_batch_norm_legit_no_training")
def batch_norm(e: Emitter, node: fx.Node) -> Any:
    """Batch normalisation with stored statistics."""
    given = arguments(node)
    if given.get("training"):
        raise e.refusal(node, "statistics of the batch (training mode)")
    affine = {k: e.value(given[s]) for k, s in (("gamma", "weight"), ("beta", "bias")) if given[s] is not None}
    result = e.mb.batch_norm(
        x=e.value(given["input"]),
        mean=e.value(given["running_mean"]),
        variance=e.value(given["running_var"]),
        epsilon=_epsilon(e, given["eps"]),
        name=node.name,
        **affine,
    )
    return (result, None, None) if op_name(node).startswith("aten._native") else result


@emits("aten.max_pool2d", "aten.avg_pool2d")
def pool(e: Emitter, node: fx.Node) -> Var:
    """Pooling over two axes."""
    given = arguments(node)
    if set(_each(given.get("dilation", 1), 2)) != {1} or given.get("divisor_override"):
        raise e.refusal(node, "dilation or another divisor")
    kernel = _each(given["kernel_size"], 2)
    options: dict[str, Any] = {
        "kernel_sizes": kernel,
        "strides": _each(given["stride"], 2) if given["stride"] else kernel,
        "pad_type": "custom",
        "pad": [p for p in _each(given["padding"], 2) for _ in (0, 1)],
        "ceil_mode": bool(given["ceil_mode"]),
    }
    x = e.value(given["self"])
    if op_name(node) == "aten.max_pool2d":
        return e.mb.max_pool(x=x, name=node.name, **options)
    excluded = not given["count_include_pad"]
    return e.mb.avg_pool(x=x, exclude_padding_from_average=excluded, name=node.name, **options)


@emits("aten.adaptive_avg_pool2d")
def adaptive_avg_pool2d(e: Emitter, node: fx.Node) -> Var:
    """The mean of each plane; other output sizes only where they divide the input."""
    given = arguments(node)
    size, wanted = shape_of(given["self"])[-2:], shape_of(node)[-2:]
    x = e.value(given["self"])
    if wanted == (1, 1):
        return e.mb.reduce_mean(x=x, axes=[-2, -1], keep_dims=True, name=node.name)
    if any(s % w for s, w in zip(size, wanted, strict=True)):
        raise e.refusal(node, f"{size} to {wanted}: windows of several sizes")
    step = [s // w for s, w in zip(size, wanted, strict=True)]
    return e.mb.avg_pool(x=x, kernel_sizes=step, strides=step, pad_type="valid", name=node.name)


@emits("planish.attention")
def attention(e: Emitter, node: fx.Node) -> Var:
    """Written out, not MIL's fused operation.

    The fused one has no finite fill for rows that may attend to nothing, no softcap and no sinks; and a community
    measurement (github.com/vx-lang/Vx/issues/437) has it on the Neural Engine only for far longer inputs.
    The scale (over the softcap) goes to q: the same number of roundings, and products further from fp16's limit.
    """
    given = arguments(node)
    heads = shape_of(given["q"])[1]
    k, v = (_repeat_heads(e, e.value(given[name]), heads) for name in ("k", "v"))
    cap = given["softcap"]
    q = e.mb.mul(x=e.value(given["q"]), y=np.float32(given["scale"] / (cap or 1.0)))
    scores = e.mb.matmul(x=q, y=k, transpose_y=True)
    if cap > 0:
        scores = e.mb.mul(x=e.mb.tanh(x=scores), y=np.float32(cap))
    if given["bias"] is not None:
        scores = e.mb.add(x=scores, y=e.value(given["bias"]))
    if given["mask"] is not None:
        scores = e.mb.select(cond=e.value(given["mask"]), a=scores, b=np.float32(-HALF_MAX))
    probabilities = _softmax(e, scores, given["sinks"])
    result = e.mb.matmul(x=probabilities, y=v)
    return e.mb.transpose(x=result, perm=[0, 2, 1, 3], name=node.name)


def _softmax(e: Emitter, scores: Var, sinks: fx.Node | None) -> Var:
    if sinks is None:
        return e.mb.softmax(x=scores, axis=-1)
    batch, heads, queries, keys = scores.shape
    column = e.broadcast(e.mb.reshape(x=e.value(sinks), shape=[1, heads, 1, 1]), (batch, heads, queries, 1))
    probabilities = e.mb.softmax(x=e.mb.concat(values=[scores, column], axis=-1), axis=-1)
    return e.mb.slice_by_index(x=probabilities, begin=[0] * 4, end=[batch, heads, queries, keys])


def _repeat_heads(e: Emitter, x: Var, heads: int) -> Var:
    batch, given, length, width = x.shape
    if given == heads:
        return x
    grouped = e.mb.reshape(x=x, shape=[batch, given, 1, length * width])
    repeated = e.mb.tile(x=grouped, reps=[1, 1, heads // given, 1])
    return e.mb.reshape(x=repeated, shape=[batch, heads, length, width])
