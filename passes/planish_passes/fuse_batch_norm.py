"""Fold batch normalisation into the convolution before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from planish_passes.infra import PassResult, Refusal
from planish_passes.program import Program, add_weight, finish, module_path, op_name
from planish_passes.weights import TensorSpec

_CONVOLUTIONS = ("aten.conv1d", "aten.conv2d", "aten.conv3d")
WEIGHT, BIAS = ".bn_weight", ".bn_bias"


@dataclass(frozen=True)
class FuseBatchNorm:
    """conv -> batch_norm (inference) becomes conv with other weights (Jacob et al. 2018, arXiv:1712.05877, 3.2).

    1. the convolution has no other user, and weight and statistics are weights of the program; else it is refused;
    2. the folded weights are derived in float64 when they are read, and rounded once.
    """

    def run(self, program: Program) -> PassResult:
        """See the class."""
        fused, refused = 0, []
        for node in list(program.graph.nodes):
            if node.op != "call_function" or op_name(node) != "aten.batch_norm":
                continue
            conv = node.args[0]
            reason = _unfit(program, node, conv)
            if reason:
                refused.append(Refusal.of(node, f"batch norm is not folded: {reason}"))
                continue
            program = _fold(program, node, conv)
            fused += 1
        return PassResult(finish(program), fused, tuple(refused))


def _unfit(program: Program, node: fx.Node, conv: Any) -> str | None:
    if not isinstance(conv, fx.Node) or conv.op != "call_function" or op_name(conv) not in _CONVOLUTIONS:
        return "its input is not a convolution"
    if len(conv.users) != 1:
        return f"{conv.name} has other users"
    if node.args[5]:
        return "it uses the statistics of the batch"
    sources = [conv.args[1], *(conv.args[2:3]), *node.args[1:5]]
    if any(program.weight_of(s) is None for s in sources if s is not None):
        return "a weight is computed at run time"
    return None


def _fold(program: Program, node: fx.Node, conv: fx.Node) -> Program:
    names = [
        program.weight_of(s) for s in (conv.args[1], conv.args[2] if len(conv.args) > 2 else None, *node.args[1:5])
    ]
    eps = float(node.args[7])  # type: ignore[arg-type]
    weight = names[0]
    assert weight is not None
    spec = program.weights.spec(weight)
    given = [n for n in names if n is not None]
    present = [n is not None for n in names]
    store, nodes = program.weights, []
    for suffix, fn, shape in ((WEIGHT, _weight, spec.shape), (BIAS, _bias, spec.shape[:1])):
        name = f"{module_path(conv)}.{conv.name}{suffix}".lstrip(".")
        store = store.derive(name, tuple(given), _Folded(fn, tuple(present), eps), TensorSpec(shape, spec.dtype))
        with conv.meta["val"].fake_mode:
            nodes.append(add_weight(program, name, torch.empty(shape, dtype=spec.dtype)))
    conv.args = (conv.args[0], *nodes, *conv.args[3:])
    node.replace_all_uses_with(conv)
    conv.meta["planish_module"] = module_path(node)
    return replace(program, weights=store)


@dataclass(frozen=True)
class _Folded:
    fn: Callable[..., Tensor]
    present: tuple[bool, ...]
    eps: float

    def __call__(self, *tensors: Tensor) -> Tensor:
        left = iter(tensors)
        weight, bias, gamma, beta, mean, variance = (next(left).double() if p else None for p in self.present)
        assert weight is not None
        assert variance is not None
        factor = (variance + self.eps).rsqrt() * (1.0 if gamma is None else gamma)
        return self.fn(weight, bias, beta, mean, factor).to(tensors[0].dtype)


def _weight(weight: Tensor, bias: Tensor | None, beta: Tensor | None, mean: Tensor, factor: Tensor) -> Tensor:
    return weight * factor.view(-1, *[1] * (weight.dim() - 1))


def _bias(weight: Tensor, bias: Tensor | None, beta: Tensor | None, mean: Tensor, factor: Tensor) -> Tensor:
    shifted = -mean if bias is None else bias - mean
    return shifted * factor + (0.0 if beta is None else beta)
