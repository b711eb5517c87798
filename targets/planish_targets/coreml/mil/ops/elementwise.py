"""Elementwise arithmetic, comparison, logic and casts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from planish_targets.coreml.mil.ops.registry import OpError, op
from planish_targets.coreml.mil.types import BY_NAME, cast

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "logical_not": torch.logical_not,
    "round": torch.round,
    "sign": torch.sign,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}

BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "real_div": torch.true_divide,
    "floor_div": torch.floor_divide,
    "mod": torch.remainder,
    "pow": torch.pow,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "equal": torch.eq,
    "not_equal": torch.ne,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
}


def _register_unary(name: str, function: Callable[[Tensor], Tensor]) -> None:
    @op(name)
    def unary(x: Tensor) -> Tensor:
        return function(x)


def _register_binary(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @op(name)
    def binary(x: Tensor, y: Tensor) -> Tensor:
        return function(x, y)


for _name, _unary in UNARY.items():
    _register_unary(_name, _unary)
for _name, _binary in BINARY.items():
    _register_binary(_name, _binary)


@op("inverse")
def inverse(x: Tensor, epsilon: Tensor | float = 1e-4) -> Tensor:
    """1 / (x + epsilon)."""
    return 1.0 / (x + epsilon)


@op("log")
def log(x: Tensor, epsilon: Tensor | float = 1e-45) -> Tensor:
    """log(x + epsilon)."""
    return torch.log(x + epsilon)


@op("rsqrt")
def rsqrt(x: Tensor, epsilon: Tensor | float = 1e-12) -> Tensor:
    """1 / sqrt(x + epsilon)."""
    return torch.rsqrt(x + epsilon)


@op("clip")
def clip(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """x limited to [alpha, beta]."""
    return torch.minimum(torch.maximum(x, alpha), beta)


@op("threshold")
def threshold(x: Tensor, alpha: Tensor) -> Tensor:
    """max(x, alpha)."""
    return torch.maximum(x, alpha)


@op("cast")
def cast_op(x: Tensor, dtype: str) -> Tensor:
    """Convert the element type; a 16-bit float result is rounded by the caller, which knows the precision."""
    wanted = BY_NAME.get(dtype)
    if wanted is None:
        raise OpError(f"unknown element type {dtype!r}")
    return x.to(torch.float32) if wanted.kind == "float" and wanted.bits < 32 else cast(x, wanted)


@op("select")
def select(cond: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
    """a where cond, else b; without both, the coordinates at which cond holds."""
    if a is None or b is None:
        return torch.nonzero(cond)
    return torch.where(cond.to(torch.bool), a, b)


@op("quantize")
def quantize(
    input: Tensor, scale: Tensor, output_dtype: str, zero_point: Tensor | None = None, axis: Tensor | None = None
) -> Tensor:
    """clip(round(input / scale) + zero_point) to the range of the output type."""
    wanted = BY_NAME[output_dtype]
    low, high = (0, 255) if wanted.kind == "uint" else (-128, 127)
    rounded = torch.round(input / along(scale, input.dim(), axis)) + along(zero_point, input.dim(), axis)
    return torch.clamp(rounded, low, high)


@op("dequantize")
def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: Tensor | None = None) -> Tensor:
    """scale * (input - zero_point)."""
    shifted = input.to(torch.float32) - along(zero_point, input.dim(), axis)
    return along(scale, input.dim(), axis) * shifted


def along(parameter: Tensor | None, rank: int, axis: Tensor | None) -> Tensor:
    """A scalar or a vector that belongs to `axis`, shaped to broadcast over `rank` dimensions, as fp32."""
    if parameter is None:
        return torch.zeros(())
    value = parameter.to(torch.float32)
    if value.dim() == 0:
        return value
    if axis is None:
        raise OpError("a vector of scales needs an axis")
    shape = [1] * rank
    shape[int(axis)] = value.numel()
    return value.reshape(shape)
