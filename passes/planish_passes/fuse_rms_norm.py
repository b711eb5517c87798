"""Find root-mean-square norms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

import planish_passes.decoder_ops  # noqa: F401  (registers the operator)
from planish_passes.infra import PassResult, Refusal
from planish_passes.match import is_op, number, other, shape_of, sole, through_casts
from planish_passes.program import Program, add_weight, finish
from planish_passes.weights import TensorSpec

RMS_NORM = "planish.rms_norm"


@dataclass(frozen=True)
class FuseRmsNorm:
    """`planish.rms_norm` in the place of x * rsqrt(mean(x^2) + eps) * weight (arXiv:1910.07467).

    1. factors may stand in any order, and casts that change nothing in between;
    2. the root may be rsqrt, a power of -0.5, or sqrt with a division;
    3. a weight kept as its distance from one (weight + 1) is added once, when the file is written;
    4. without a weight of one value per channel, the norm stands alone;
    5. `aten.rms_norm` is the same thing.

    What the model's modules say is such a norm and is not found is refused, and expected no more.
    """

    def run(self, program: Program) -> PassResult:
        """See the class."""
        fused, refused = 0, list[Refusal]()
        for node in list(program.graph.nodes):
            found = _builtin(node) if is_op(node, "aten.rms_norm") else _match(node)
            if found is None:
                continue
            if found.weight is None:
                program, last, weight = _weighted(program, found.product)
            else:
                last, weight = found.product, found.weight
            with program.graph.inserting_before(last):
                norm = program.graph.call_function(torch.ops.planish.rms_norm.default, (found.x, weight, found.eps))
            norm.meta = dict(last.meta)
            last.replace_all_uses_with(norm)
            fused += 1
        program = finish(program)
        refused += [Refusal.of(n, "a norm of another form: not fused") for n in program.graph.nodes if _root(n)]
        lost = program.expects.get(RMS_NORM, 0) - fused
        if lost > 0:
            refused.append(Refusal(RMS_NORM, f"{lost} of {lost + fused} modules named so have another form: not fused"))
        if fused or lost:
            program = replace(program, expects={**program.expects, RMS_NORM: fused})
        return PassResult(program, fused, tuple(refused))


@dataclass(frozen=True)
class _Norm:
    x: fx.Node
    product: fx.Node
    eps: float
    weight: fx.Node | None = None


def _builtin(node: fx.Node) -> _Norm | None:
    x, shape, weight, eps = (*node.args, None, None)[:4]
    assert isinstance(x, fx.Node)
    if len(shape) != 1 or (weight is not None and not isinstance(weight, fx.Node)):  # type: ignore[arg-type]
        return None
    value = number(eps)
    return _Norm(x, node, torch.finfo(x.meta["val"].dtype).eps if value is None else value, weight)


def _root(node: Any) -> fx.Node | None:
    """What 1 / sqrt is taken of."""
    if is_op(node, "aten.rsqrt"):
        return node.args[0]  # type: ignore[no-any-return]
    if is_op(node, "aten.pow") and number(node.args[1]) == -0.5:
        return node.args[0]  # type: ignore[no-any-return]
    if is_op(node, "aten.reciprocal") and is_op(node.args[0], "aten.sqrt"):
        return node.args[0].args[0]  # type: ignore[no-any-return]
    return None


def _match(node: fx.Node) -> _Norm | None:
    if is_op(node, "aten.div") and is_op(node.args[1], "aten.sqrt") and not node.kwargs:
        inside, product, factor = node.args[1].args[0], node, node.args[0]  # type: ignore[union-attr]
    else:
        inside, product = _root(node), sole(node)
        if inside is None or not is_op(product, "aten.mul"):
            return None
        factor = other(product, node)
    mean, eps = _with_epsilon(inside)
    x = _squared(_mean(mean))
    if x is None or eps is None or through_casts(factor) is not through_casts(x):
        return None
    return _Norm(through_casts(x), product, eps)


def _with_epsilon(inside: Any) -> tuple[Any, float | None]:
    if not is_op(inside, "aten.add") or inside.kwargs:
        return inside, 0.0
    a, b = inside.args
    return (a, number(b)) if isinstance(a, fx.Node) else (b, number(a))


def _mean(node: Any) -> Any:
    """What the mean over the last axis, kept as an axis of one, is taken of."""
    node = through_casts(node)
    if not is_op(node, "aten.mean") or len(node.args) < 2:
        return None
    keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    last = len(shape_of(node.args[0])) - 1
    return node.args[0] if keep and list(node.args[1]) in ([-1], [last]) else None


def _squared(node: Any) -> fx.Node | None:
    node = through_casts(node)
    if is_op(node, "aten.pow") and node.args[1] == 2 and isinstance(node.args[0], fx.Node):
        return node.args[0]
    if is_op(node, "aten.square"):
        return node.args[0]  # type: ignore[no-any-return]
    if is_op(node, "aten.mul") and node.args[0] is node.args[1]:
        return node.args[0]  # type: ignore[no-any-return]
    return None


def _weighted(program: Program, product: fx.Node) -> tuple[Program, fx.Node, fx.Node | None]:
    """The last node of the norm, and its weight."""
    last = sole(product)
    if not is_op(last, "aten.mul"):
        return program, product, None
    factor = through_casts(other(last, product))
    if _per_channel(program, factor, product):
        return program, last, factor
    if is_op(factor, "aten.add") and not factor.kwargs and 1.0 in factor.args:
        weight = next(a for a in factor.args if a != 1.0)
        if _per_channel(program, weight, product):
            program, weight = _one_more(program, weight)
            return program, last, weight
    return program, product, None


def _per_channel(program: Program, weight: Any, product: fx.Node) -> bool:
    return program.weight_of(weight) is not None and shape_of(weight) == shape_of(product)[-1:]


def _one_more(program: Program, weight: fx.Node) -> tuple[Program, fx.Node]:
    name = program.weight_of(weight)
    assert name is not None
    full, known = f"{name}.plus_one", program.weight_names()
    for node in program.graph.nodes:
        if known.get(node.name) == full:
            return program, node
    spec: TensorSpec = program.weights.spec(name)
    program = replace(program, weights=program.weights.derive(full, (name,), lambda w: w + 1, spec, by_rows=True))
    return program, add_weight(program, full, weight.meta["val"])
