"""Layers: linear, quantised linear, convolution, normalisation, pooling, attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import fx

from planish_passes.palette import INDICES
from planish_passes.program import op_name
from planish_passes.quantise import VALUES
from planish_targets.coreml.emit.emitter import Emitter, arguments, emits
from planish_targets.coreml.emit.naming import COMPRESSED, Var
from planish_targets.coreml.emit.sizes import shape_of
from planish_targets.coreml.sdk import HALF_MAX

_PARTS = ("weight", "scales", "zero_points")
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
    if given["activations"] != "none":
        raise e.refusal(node, f"activations {given['activations']}")
    return _linear(e, node, e.value(given["x"]), quantized_weight(e, given), given["bias"])


@emits("planish.linear_lut")
def linear_lut(e: Emitter, node: fx.Node) -> Var:
    """A linear whose weight is looked up in tables."""
    given = arguments(node)
    weight = table_weight(e, given)
    return _linear(e, node, e.value(given["x"]), weight, given["bias"])


def quantized_weight(e: Emitter, given: Mapping[str, Any], kernel: bool = False) -> Var:
    """The decompressing operation of a quantised weight, one for all its uses.

    Args:
        given: arguments of a linear_q or embedding_q.
        kernel: as a kernel of 1x1 convolutions.
    """
    values, scales, zeros = (None if given[k] is None else e.weights.name(given[k]) for k in _PARTS)
    assert values is not None
    assert scales is not None
    return e.weights.decompressed(values.removesuffix(VALUES), values, scales, zeros, int(given["bits"]), kernel)


def table_weight(e: Emitter, given: Mapping[str, Any], kernel: bool = False) -> Var:
    """The decompressing operation of a weight that is looked up in tables.

    Args:
        given: arguments of a linear_lut.
        kernel: as a kernel of 1x1 convolutions.
    """
    indices, tables = e.weights.name(given["indices"]), e.weights.name(given["tables"])
    assert indices is not None
    assert tables is not None
    return e.weights.looked_up(indices.removesuffix(INDICES), indices, tables, kernel)


def _linear(e: Emitter, node: fx.Node, x: Var, weight: Var, bias: fx.Node | None) -> Var:
    constant = weight.op is not None and weight.op.op_type in ("const", *COMPRESSED)
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
    epsilon = stored_epsilon(e, given["eps"])
    result = e.mb.layer_norm(x=e.value(given["input"]), axes=axes, epsilon=epsilon, name=node.name, **affine)
    return (result, None, None) if op_name(node) == "aten.native_layer_norm" else result


def stored_epsilon(e: Emitter, epsilon: float) -> Any:
    """An epsilon as fp16 will hold it."""
    # An epsilon that rounds to 0 in fp16 would make a constant row 0 / 0.
    if 0 < epsilon <= _HALF_TINY:
        which = f"epsilon {epsilon:g}" if epsilon < _HALF_TINY else "an epsilon"  # the yardstick has 2^-24 already
        e.note(f"{which} of a normalisation is below fp16; it is stored as the smallest fp16 number, 2^-24")
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
        epsilon=stored_epsilon(e, given["eps"]),
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
    """See `attend`."""
    given = arguments(node)
    mask = None if given["mask"] is None else e.value(given["mask"])
    return attend(e, given, e.value(given["k"]), e.value(given["v"]), mask, node.name)


def attend(e: Emitter, given: Mapping[str, Any], k: Var, v: Var, mask: Var | None, name: str) -> Var:
    """Attention written out, not MIL's fused operation.

    The fused one has no finite fill for rows that may attend to nothing, no softcap and no sinks; and a community
    measurement (github.com/vx-lang/Vx/issues/437) has it on the Neural Engine only for far longer inputs.
    The scale goes to q: the same number of roundings, and products further from fp16's limit.

    Args:
        given: q, bias, sinks, scale and softcap, as of `planish_passes.ops.attention`.
    """
    q = e.mb.mul(x=e.value(given["q"]), y=np.float32(given["scale"]))
    probabilities = attention_scores(e, given, _by_head(e, q, k, transpose_y=True), mask)
    return e.mb.transpose(x=_by_head(e, probabilities, v), perm=[0, 2, 1, 3], name=name)


def attention_scores(e: Emitter, given: Mapping[str, Any], scores: Var, mask: Var | None) -> Var:
    """Scaled products [B, H, Q, K] to probabilities.

    Args:
        given: bias, sinks and softcap, as of `planish_passes.ops.attention`.
        mask: bool, or numbers to be added.
    """
    cap = given["softcap"]
    if cap > 0:
        # divided, because fp16 has 50 and not 1 / 50
        scores = e.mb.mul(x=e.mb.tanh(x=e.mb.real_div(x=scores, y=np.float32(cap))), y=np.float32(cap))
    if given["bias"] is not None:
        scores = e.mb.add(x=scores, y=e.value(given["bias"]))
    if mask is not None and e.types.builtin_to_string(mask.dtype) != "bool":
        scores = e.mb.add(x=scores, y=mask)
    elif mask is not None:
        scores = e.mb.select(cond=mask, a=scores, b=np.float32(-HALF_MAX))
    return _softmax(e, scores, given["sinks"])


def _by_head(e: Emitter, x: Var, y: Var, **how: bool) -> Var:
    """x @ y, where neighbouring heads of x share one of y.

    Their rows are put below each other: repeating y instead would copy a whole cache at each step.
    """
    batch, heads, rows, width = x.shape
    shared = y.shape[1]
    if heads == shared:
        return e.mb.matmul(x=x, y=y, **how)
    product = e.mb.matmul(x=e.sizes.reshape(x, [batch, shared, heads // shared * rows, width]), y=y, **how)
    return e.sizes.reshape(product, [batch, heads, rows, product.shape[-1]])


def _softmax(e: Emitter, scores: Var, sinks: fx.Node | None) -> Var:
    if sinks is None:
        return e.mb.softmax(x=scores, axis=-1)
    batch, heads, queries, _ = scores.shape
    column = e.broadcast(e.mb.reshape(x=e.value(sinks), shape=[1, heads, 1, 1]), (batch, heads, queries, 1))
    probabilities = e.mb.softmax(x=e.mb.concat(values=[scores, column], axis=-1), axis=-1)
    whole = [True, True, True, False]
    return e.mb.slice_by_index(x=probabilities, begin=[0] * 4, end=[0, 0, 0, -1], end_mask=whole)
