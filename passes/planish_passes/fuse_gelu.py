"""Find GELU written out by hand."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx

from planish_passes.infra import PassResult
from planish_passes.program import Program, finish, op_name

_TANH_CUBIC = 0.044715
_TANH_SCALE = math.sqrt(2 / math.pi)


@dataclass(frozen=True)
class FuseGelu:
    """`aten.gelu` in the place of its two written-out forms (Hendrycks and Gimpel 2016, arXiv:1606.08415).

    1. tanh form: 0.5 * x * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x^3)));
    2. erf form: x * 0.5 * (1 + erf(x / sqrt(2))).
    Factors may stand in any order.
    """

    def run(self, program: Program) -> PassResult:
        """See the class."""
        fused = 0
        for node in list(program.graph.nodes):
            if not _is(node, "aten.mul"):
                continue
            found = _match(node)
            if found is None:
                continue
            x, approximate = found
            with program.graph.inserting_before(node):
                gelu = program.graph.call_function(
                    torch.ops.aten.gelu.default, (x,), {"approximate": approximate} if approximate != "none" else {}
                )
            gelu.meta = dict(node.meta)
            node.replace_all_uses_with(gelu)
            fused += 1
        return PassResult(finish(program), fused)


def _is(node: Any, *names: str) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and op_name(node) in names


def _factors(node: Any) -> list[Any]:
    """The factors of a product, through nested products and divisions by numbers."""
    flat: list[Any] = []
    for argument in node.args[:2]:
        inner = _is(argument, "aten.mul") and isinstance(argument, fx.Node) and len(argument.users) == 1
        flat += _factors(argument) if inner else [argument]
    return flat


def _match(node: fx.Node) -> tuple[fx.Node, str] | None:
    factors = _factors(node)
    numbers = [f for f in factors if isinstance(f, (int, float))]
    tensors = [f for f in factors if isinstance(f, fx.Node)]
    if len(numbers) != 1 or not _near(numbers[0], 0.5) or len(tensors) != 2:
        return None
    for one, x in (tensors, tensors[::-1]):
        inner: Any = _plus_one(one)
        if _is(inner, "aten.tanh") and _tanh_argument(inner.args[0], x):
            return x, "tanh"
        if _is(inner, "aten.erf") and _scaled(inner.args[0], 1 / math.sqrt(2), partial(operator.is_, x)):
            return x, "none"
    return None


def _plus_one(node: Any) -> fx.Node | None:
    if not _is(node, "aten.add"):
        return None
    terms = list(node.args[:2])
    other = [t for t in terms if not (isinstance(t, (int, float)) and _near(t, 1.0))]
    return other[0] if len(other) == 1 and isinstance(other[0], fx.Node) else None


def _tanh_argument(node: Any, x: fx.Node) -> bool:
    return _scaled(node, _TANH_SCALE, lambda n: _cubic(n, x))


def _cubic(node: Any, x: fx.Node) -> bool:
    if not _is(node, "aten.add"):
        return False
    terms = node.args[:2]
    rest = [t for t in terms if t is not x]
    return len(rest) == 1 and _scaled(rest[0], _TANH_CUBIC, lambda n: _cube(n, x))


def _cube(node: Any, x: fx.Node) -> bool:
    return _is(node, "aten.pow") and node.args[0] is x and _near(node.args[1], 3)


def _scaled(node: Any, factor: float, inner: Callable[[Any], bool]) -> bool:
    if _is(node, "aten.div"):
        return _near(node.args[1], 1 / factor) and inner(node.args[0])
    if not _is(node, "aten.mul"):
        return False
    a, b = node.args[:2]
    return (_near(a, factor) and inner(b)) or (_near(b, factor) and inner(a))


def _near(value: object, target: float) -> bool:
    return isinstance(value, (int, float)) and math.isclose(value, target, rel_tol=1e-6)
