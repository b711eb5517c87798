"""Epsilons of normalisations, in any format: attributes of one operator, or constants that are added before a root."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from planish_passes.nodes import module_path, op_name
from planish_targets.contract import Attribute

NORM, ADD, ROOT, SAME, OTHER = "norm", "add", "root", "same", "other"
EPSILON = "epsilon"


@dataclass(frozen=True)
class Number:
    """A constant and the dtype that it is stored in."""

    value: float
    dtype: torch.dtype = torch.float64


@dataclass(frozen=True)
class Step:
    """One operation of a graph, in the few words that finding epsilons needs.

    Args:
        kind: NORM, ADD, ROOT (square root or its reciprocal), SAME (passes its first input on, or moves it) or OTHER.
        op: the operator in the format's own words.
        inputs: keys of the values that it reads; for ADD the two summands.
        output: key of the value that it makes.
        module: source module path, "" where unknown.
        epsilon: of a NORM.
    """

    kind: str
    op: str
    inputs: tuple[Hashable, ...]
    output: Hashable
    module: str = ""
    epsilon: Number | None = None


def epsilons(steps: Iterable[Step], number: Callable[[Any], Number | None]) -> Iterator[tuple[Step, Number]]:
    """Every normalisation's epsilon with the step that holds it: the NORM, or the ADD whose sum a ROOT reads.

    Args:
        steps: a graph, in any order.
        number: value of a key that is a constant of one element, else None.
    """
    listed = list(steps)
    makers = {s.output: s for s in listed}

    def origin(key: Hashable) -> Hashable:
        while (maker := makers.get(key)) is not None and maker.kind == SAME and maker.inputs:
            key = maker.inputs[0]
        return key

    rooted = {origin(s.inputs[0]) for s in listed if s.kind == ROOT}
    for step in listed:
        if step.kind == NORM and step.epsilon is not None:
            yield step, step.epsilon
        elif step.kind == ADD and step.output in rooted:
            added = [n for n in (number(origin(key)) for key in step.inputs) if n is not None]
            if len(added) == 1:
                yield step, added[0]


def attributes(steps: Iterable[Step], number: Callable[[Any], Number | None]) -> tuple[Attribute, ...]:
    """The epsilons of a file, as the contract wants them."""
    return tuple(Attribute(EPSILON, n.value, n.dtype, s.op, s.module) for s, n in epsilons(steps, number))


def is_half(exponent: float | None) -> bool:
    """True for the exponents that make a power a ROOT."""
    return exponent is not None and abs(exponent) == 0.5


_FX_SAME = frozenset(
    f"aten.{name}"
    for name in (
        *("to", "_to_copy", "clone", "contiguous", "alias", "reshape", "view", "transpose", "permute"),
        *("unsqueeze", "squeeze", "expand", "flatten", "unflatten"),
    )
)


def fx_steps(graph: fx.Graph) -> Iterator[Step]:
    """A torch graph; keys are nodes, and numbers where the call holds them."""
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            yield _fx_step(node, arguments(node))


def fx_number(key: object, read: Callable[[fx.Node], Tensor | None]) -> Number | None:
    """Value of a key of `fx_steps`.

    Args:
        read: a node's value where it is a weight or constant of one floating element, else None.
    """
    if not isinstance(key, fx.Node):
        return Number(float(key)) if isinstance(key, (int, float)) else None
    value = read(key)
    return None if value is None else Number(float(value.item()), value.dtype)


def arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments of an operator's call by their names in its schema, defaults filled in."""
    assert isinstance(node.target, torch._ops.OpOverload)
    schema = node.target._schema.arguments
    given = dict(zip((a.name for a in schema), node.args, strict=False)) | dict(node.kwargs)
    return {a.name: given.get(a.name, a.default_value) for a in schema}


def _fx_step(node: fx.Node, given: dict[str, Any]) -> Step:
    op, module = op_name(node), module_path(node)
    first = next(iter(given.values()), None)
    name = next((n for n in ("eps", "epsilon") if n in given), None)
    if name is not None and "norm" in op:
        value = given[name]
        if value is None:  # rms_norm's default
            value = torch.finfo(node.meta["val"].dtype).eps
        return Step(NORM, op, (first,), node, module, Number(float(value)))
    if op == "aten.add" and given.get("alpha", 1) == 1:
        return Step(ADD, op, (first, given["other"]), node, module)
    if op in ("aten.sqrt", "aten.rsqrt") or (op == "aten.pow" and _is_half(given["exponent"])):
        return Step(ROOT, op, (first,), node, module)
    kind = SAME if op in _FX_SAME and isinstance(first, fx.Node) else OTHER
    return Step(kind, op, (first,) if kind == SAME else (), node, module)


def _is_half(exponent: object) -> bool:
    return isinstance(exponent, (int, float)) and is_half(float(exponent))
