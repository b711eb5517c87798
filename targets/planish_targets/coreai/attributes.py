"""Epsilons of a .aimodel: of composites, which declare them and spell them out, and of norms in a function itself."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping

import torch

from planish_targets import attributes as steps
from planish_targets.attributes import Number, Step
from planish_targets.contract import Attribute
from planish_targets.coreai.asset import TYPES, Asset, Graph, Operation, parsed

_Number = Callable[[Hashable], Number | None]
_ADD = ("coreai.add", "coreai.decomposable.broadcasting_add")
_ROOT = ("coreai.sqrt", "coreai.rsqrt")
_POWER = ("coreai.pow", "coreai.decomposable.broadcasting_pow")
_SAME = frozenset(
    f"coreai.{name}" for name in ("cast", "reshape", "transpose", "expand_dims", "shrink_dims", "broadcast_to")
)


def read(asset: Asset, function: Graph, modules: Mapping[str, str]) -> tuple[Attribute, ...]:
    """Epsilons that a function states.

    A composite states its epsilon twice: declared, for devices that have the operator, and in its body, which is what
    runs where they have not. Both are told when they differ.

    Args:
        modules: name of a node in the file -> source module.
    """
    found: list[Attribute] = []
    for op in function.operations:
        composite = asset.graphs.get(op.callee)
        if composite is None or composite.epsilon is None:
            continue
        module, dtype = modules.get(op.source, ""), TYPES["f32"][0]
        declared = Attribute(steps.EPSILON, _rounded(composite.epsilon), dtype, composite.composite, module)
        found.append(declared)
        inner = _stated(asset, composite, lambda _, module=module: module)  # type: ignore[misc]
        found += [a for a in inner if Number(a.value, a.dtype) != Number(declared.value, dtype)]
    return (*found, *_stated(asset, function, lambda source: modules.get(source, "")))


def _rounded(value: float) -> float:
    """The float32 that a text of nine digits stands for."""
    return float(torch.tensor(value, dtype=torch.float32))


def _stated(asset: Asset, graph: Graph, module: Callable[[str], str]) -> tuple[Attribute, ...]:
    constants = graph.constants()

    def number(key: Hashable) -> Number | None:
        op = constants.get(key) if isinstance(key, int) else None
        if op is None:
            return None
        shape, element = parsed(op.types[0])
        if element not in ("f32", "f16", "bf16") or any(size != 1 for size in shape):
            return None
        return Number(float(asset.tensor(op)), TYPES[element][0])

    return steps.attributes(_steps(graph, number, module), number)


def _steps(graph: Graph, number: _Number, module: Callable[[str], str]) -> Iterator[Step]:
    for op in graph.operations:
        if op.outputs:
            yield Step(_kind(op, number), op.op, op.inputs, op.outputs[0], module(op.source))


def _kind(op: Operation, number: _Number) -> str:
    if op.op in _ADD:
        return steps.ADD
    if op.op in _ROOT:
        return steps.ROOT
    if op.op in _POWER:
        exponent = number(op.inputs[1])
        return steps.ROOT if exponent is not None and steps.is_half(exponent.value) else steps.OTHER
    return steps.SAME if op.op in _SAME else steps.OTHER
