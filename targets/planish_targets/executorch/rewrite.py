"""Forms that XNNPACK takes, in the place of equal ones that would fall back to portable kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx

from planish_passes.infra import PassResult, Refusal
from planish_passes.program import Program, finish, op_name
from planish_targets.executorch.edit import caller, swap

_ATEN = torch.ops.aten
# Large enough to absorb any score (score + fill == fill for |score| < 2**75), small enough that no kernel overflows.
_FILL = -(2.0**100)


def _calls(program: Program, *names: str) -> list[fx.Node]:
    return [n for n in program.graph.nodes if n.op == "call_function" and op_name(n) in names]


@dataclass(frozen=True)
class BatchMatmul:
    """`aten.bmm` in the place of `aten.matmul` of equal leading dimensions.

    Left alone, matmul of rank 4 lowers to expand and copy, which XNNPACK does not take: every product becomes a
    subgraph of its own. Refused: operands whose leading dimensions differ, and ranks below 3.
    """

    def run(self, program: Program) -> PassResult:
        """See the class."""
        changed, refused = 0, []
        for node in _calls(program, "aten.matmul"):
            a, b = node.args[:2]
            assert isinstance(a, fx.Node)
            assert isinstance(b, fx.Node)
            left, right = a.meta["val"].shape, b.meta["val"].shape
            if len(left) < 3 or len(left) != len(right) or left[:-2] != right[:-2]:
                refused.append(Refusal.of(node, f"the operands {list(left)} and {list(right)} are not equal batches"))
                continue
            call, last = caller(program.graph, node), len(left) - 3
            if last:
                a, b = call(_ATEN.flatten.using_ints, a, 0, last), call(_ATEN.flatten.using_ints, b, 0, last)
            product = call(_ATEN.bmm.default, a, b)
            swap(program.graph, node, call(_ATEN.unflatten.int, product, 0, list(left[:-2])) if last else product)
            changed += 1
        return PassResult(finish(program), changed, tuple(refused))


@dataclass(frozen=True)
class AdditiveMask:
    """A mask that is added to the scores, computed once, in the place of `where` or `masked_fill` in every layer.

    Added is 0 where a position may be attended to and a large negative finite number elsewhere: behind the softmax both
    forms are equal to the last bit. Refused: a fill that is not a large negative number, and a result that something
    other than a softmax reads.
    """

    def run(self, program: Program) -> PassResult:
        """See the class."""
        masks: dict[tuple[fx.Node, bool], fx.Node] = {}
        changed, refused = 0, []
        for node in _calls(program, "aten.where", "aten.masked_fill"):
            where = op_name(node) == "aten.where"
            mask, scores, fill = node.args if where else (node.args[1], node.args[0], node.args[2])
            reason = _unfit(node, scores, fill)
            if reason is not None:
                refused.append(Refusal.of(node, reason))
                continue
            assert isinstance(mask, fx.Node)
            assert isinstance(scores, fx.Node)
            if (mask, where) not in masks:
                create = caller(program.graph, mask, before=mask.next)
                values = (0.0, _FILL) if where else (_FILL, 0.0)
                masks[mask, where] = create(_ATEN.where.Scalar, mask, *values)
            call = caller(program.graph, node)
            swap(program.graph, node, call(_ATEN.add.Tensor, scores, masks[mask, where]))
            changed += 1
        return PassResult(finish(program), changed, tuple(refused))


def _unfit(node: fx.Node, scores: object, fill: object) -> str | None:
    if not isinstance(scores, fx.Node) or not isinstance(fill, (int, float)) or fill > -1e4:
        return f"the fill {fill} is not a large negative number"
    if node.meta["val"].dtype != torch.float32 or scores.meta["val"].shape != node.meta["val"].shape:
        return "the mask changes dtype or shape of what it masks"
    others = [u.name for u in node.users if u.op != "call_function" or op_name(u) != "aten.softmax"]
    return f"{', '.join(others)} reads it, not a softmax alone" if others else None


@dataclass(frozen=True)
class ExpandTanhGelu:
    """The tanh form of GELU, written out: XNNPACK's delegate ignores `approximate` and would compute the erf form.

    GELU of the erf form is left alone: XNNPACK computes it.
    """

    def run(self, program: Program) -> PassResult:
        """See the class."""
        changed = 0
        for node in _calls(program, "aten.gelu"):
            if node.kwargs.get("approximate", "none") == "none":
                continue
            x, call = node.args[0], caller(program.graph, node)
            cube = call(_ATEN.mul.Tensor, call(_ATEN.mul.Tensor, x, x), x)
            inner = call(_ATEN.add.Tensor, x, call(_ATEN.mul.Tensor, cube, 0.044715))
            bent = call(_ATEN.tanh.default, call(_ATEN.mul.Tensor, inner, math.sqrt(2 / math.pi)))
            half = call(_ATEN.mul.Tensor, x, 0.5)
            swap(program.graph, node, call(_ATEN.mul.Tensor, half, call(_ATEN.add.Tensor, bent, 1.0)))
            changed += 1
        return PassResult(finish(program), changed)
