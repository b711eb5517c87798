"""Arithmetic, comparison, logic, casts and reductions."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from planish_passes.program import op_name
from planish_targets.coreml.emit.emitter import Emitter, arguments, dtype_of, emits, mil_type
from planish_targets.coreml.emit.naming import Var
from planish_targets.coreml.emit.sizes import shape_of

_BINARY = {"aten.mul": "mul", "aten.maximum": "maximum", "aten.minimum": "minimum", "aten.pow": "pow"}
_COMPARISONS = {
    "aten.eq": "equal",
    "aten.ne": "not_equal",
    "aten.lt": "less",
    "aten.le": "less_equal",
    "aten.gt": "greater",
    "aten.ge": "greater_equal",
}
_LOGIC = {
    "aten.logical_and": "logical_and",
    "aten.logical_or": "logical_or",
    "aten.logical_xor": "logical_xor",
    "aten.__and__": "logical_and",
    "aten.__or__": "logical_or",
    "aten.__xor__": "logical_xor",
    "aten.bitwise_and": "logical_and",
    "aten.bitwise_or": "logical_or",
    "aten.bitwise_xor": "logical_xor",
}
_SAME_NAME = "exp sqrt tanh sigmoid relu erf abs ceil floor round sign sin cos silu"
_UNARY = {f"aten.{name}": name for name in _SAME_NAME.split()}
_REDUCTIONS = {
    "aten.mean": "reduce_mean",
    "aten.sum": "reduce_sum",
    "aten.amax": "reduce_max",
    "aten.amin": "reduce_min",
}


def _pair(e: Emitter, node: fx.Node, dtype: torch.dtype) -> dict[str, Any]:
    left, right = node.args[:2]
    return {"x": e.operand(left, dtype), "y": e.operand(right, dtype), "name": node.name}


@emits(*_BINARY)
def binary(e: Emitter, node: fx.Node) -> Var:
    """mul, maximum, minimum, pow; a product of bools is their conjunction."""
    dtype = dtype_of(node)
    if dtype == torch.bool:
        return e.mb.logical_and(**_pair(e, node, dtype))
    return getattr(e.mb, _BINARY[op_name(node)])(**_pair(e, node, dtype))


@emits("aten.add", "aten.sub")
def add_sub(e: Emitter, node: fx.Node) -> Var:
    """x + alpha * y, x - alpha * y."""
    given, pair = arguments(node), _pair(e, node, dtype_of(node))
    if given.get("alpha", 1) != 1:
        pair["y"] = e.mb.mul(x=pair["y"], y=e.literal(given["alpha"], dtype_of(node)))
    return (e.mb.add if op_name(node) == "aten.add" else e.mb.sub)(**pair)


@emits("aten.div", "aten.floor_divide")
def div(e: Emitter, node: fx.Node) -> Var:
    """x / y; rounded down on request."""
    mode = "floor" if op_name(node) == "aten.floor_divide" else arguments(node).get("rounding_mode")
    if mode == "trunc":
        raise e.refusal(node, "division that rounds towards zero")
    return (e.mb.floor_div if mode == "floor" else e.mb.real_div)(**_pair(e, node, dtype_of(node)))


@emits("aten.reciprocal")
def reciprocal(e: Emitter, node: fx.Node) -> Var:
    """1 / x. MIL's `inverse` adds 1e-4 to x."""
    return e.mb.real_div(x=e.literal(1.0, torch.float32), y=e.value(node.args[0]), name=node.name)


@emits("aten.neg")
def neg(e: Emitter, node: fx.Node) -> Var:
    """-x."""
    return e.mb.mul(x=e.value(node.args[0]), y=e.literal(-1, dtype_of(node)), name=node.name)


@emits(*_COMPARISONS)
def compare(e: Emitter, node: fx.Node) -> Var:
    """Comparisons, in the promoted type of both sides; bools compare as integers."""
    values = [a.meta["val"] if isinstance(a, fx.Node) else a for a in node.args[:2]]
    dtype = torch.result_type(values[0], values[1])
    return getattr(e.mb, _COMPARISONS[op_name(node)])(**_pair(e, node, torch.int32 if dtype == torch.bool else dtype))


@emits(*_LOGIC)
def logic(e: Emitter, node: fx.Node) -> Var:
    """Logic on bools."""
    if dtype_of(node) != torch.bool:
        raise e.refusal(node, "bit operations on integers")
    return getattr(e.mb, _LOGIC[op_name(node)])(**_pair(e, node, torch.bool))


@emits("aten.logical_not", "aten.bitwise_not")
def logical_not(e: Emitter, node: fx.Node) -> Var:
    """not x, on bools."""
    if dtype_of(node) != torch.bool:
        raise e.refusal(node, "bit operations on integers")
    return e.mb.logical_not(x=e.operand(node.args[0], torch.bool), name=node.name)


@emits(*_UNARY)
def unary(e: Emitter, node: fx.Node) -> Var:
    """Functions of one argument that MIL has under the same name."""
    return getattr(e.mb, _UNARY[op_name(node)])(x=e.operand(node.args[0], dtype_of(node)), name=node.name)


@emits("aten.clamp", "aten.hardtanh")
def clamp(e: Emitter, node: fx.Node) -> Var:
    """Limits on either side, numbers or tensors."""
    given, dtype = arguments(node), dtype_of(node)
    low, high = given.get("min", given.get("min_val")), given.get("max", given.get("max_val"))
    result = e.operand(node.args[0], dtype)
    if (low, high) == (0, 6) and mil_type(dtype) == "fp32":
        return e.mb.relu6(x=result, name=node.name)
    if low is not None:
        result = e.mb.maximum(x=result, y=e.operand(low, dtype))
    return result if high is None else e.mb.minimum(x=result, y=e.operand(high, dtype), name=node.name)


@emits("aten.gelu")
def gelu(e: Emitter, node: fx.Node) -> Var:
    """Exact or tanh form."""
    mode = "TANH_APPROXIMATION" if arguments(node)["approximate"] == "tanh" else "EXACT"
    return e.mb.gelu(x=e.value(node.args[0]), mode=mode, name=node.name)


@emits("aten.softmax", "aten._softmax")
def softmax(e: Emitter, node: fx.Node) -> Var:
    """Softmax over one axis."""
    return e.mb.softmax(x=e.operand(node.args[0], dtype_of(node)), axis=arguments(node)["dim"], name=node.name)


@emits("aten.to", "aten._to_copy", "aten.type_as")
def to(e: Emitter, node: fx.Node) -> Var:
    """Casts; casts between types that share a MIL type vanish."""
    return e.cast(e.value(node.args[0]), dtype_of(node), node.name)


@emits("aten.where")
def where(e: Emitter, node: fx.Node) -> Var:
    """a where the condition holds, else b."""
    given, dtype = arguments(node), dtype_of(node)
    if "other" not in given:
        raise e.refusal(node, "the number of results depends on the data")
    return _select(e, node, given["condition"], e.operand(given["self"], dtype), e.operand(given["other"], dtype))


@emits("aten.masked_fill")
def masked_fill(e: Emitter, node: fx.Node) -> Var:
    """A number where the mask holds, else x."""
    given, dtype = arguments(node), dtype_of(node)
    return _select(e, node, given["mask"], e.operand(given["value"], dtype), e.operand(given["self"], dtype))


def _select(e: Emitter, node: fx.Node, condition: fx.Node, a: Any, b: Any) -> Var:
    # MIL infers the result's shape from a and b alone, so one of them has to have it
    shape = shape_of(node)
    if shape not in (getattr(a, "shape", ()), getattr(b, "shape", ())):
        b = e.broadcast(b if hasattr(b, "dtype") and hasattr(b, "op") else e.mb.const(val=b), shape)
    return e.mb.select(cond=e.operand(condition, torch.bool), a=a, b=b, name=node.name)


@emits(*_REDUCTIONS)
def reduce(e: Emitter, node: fx.Node) -> Var:
    """Reductions over some or all axes."""
    given = arguments(node)
    rank = len(shape_of(node.args[0]))  # type: ignore[arg-type]
    axes = given.get("dim")
    axes = list(range(rank)) if axes is None or axes == [] else [axes] if isinstance(axes, int) else list(axes)
    keep = bool(given.get("keepdim", False))
    x = e.operand(node.args[0], dtype_of(node))
    return getattr(e.mb, _REDUCTIONS[op_name(node)])(x=x, axes=axes, keep_dims=keep, name=node.name)


@emits("aten.cumsum")
def cumsum(e: Emitter, node: fx.Node) -> Var:
    """Running sums along one axis."""
    return e.mb.cumsum(x=e.operand(node.args[0], dtype_of(node)), axis=arguments(node)["dim"], name=node.name)
