"""Forms of operators that Vulkan's runtime computes, in the place of those that it computes otherwise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx

from planish_passes.infra import PassResult
from planish_passes.program import Program, finish, op_name
from planish_targets.attributes import arguments
from planish_targets.executorch.edit import caller, constant, swap

_ATEN = torch.ops.aten
# erf(z) = 1 - t (a1 + t (a2 + t (a3 + t (a4 + t a5)))) exp(-z^2), t = 1 / (1 + p z), for z >= 0; error below 1.5e-7.
# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
_P = 0.3275911
_A = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


@dataclass(frozen=True)
class ExpandErfGelu:
    """GELU of the erf form, written out: Vulkan's runtime has the tanh form alone and takes it for both.

    relu(x) - |x| / 2 * P(t) exp(-x^2 / 2), with P and t of `_A` and z = |x| / sqrt(2): within 1e-6 of the erf form.
    GELU of the tanh form is left alone.
    """

    def run(self, program: Program) -> PassResult:
        """See the class."""
        calls = [n for n in program.graph.nodes if n.op == "call_function" and op_name(n) == "aten.gelu"]
        found = [n for n in calls if n.kwargs.get("approximate", "none") == "none"]
        for node in found:
            program, one = constant(program, "executorch.one", torch.ones(1))
            _write_out(program, node, one)
        return PassResult(finish(program), len(found))


def _write_out(program: Program, node: fx.Node, one: fx.Node) -> None:
    x, call = node.args[0], caller(program.graph, node)
    add, mul = _ATEN.add.Tensor, _ATEN.mul.Tensor
    size = call(_ATEN.abs.default, x)
    t = call(_ATEN.div.Tensor, one, call(add, call(mul, size, _P / math.sqrt(2)), 1.0))
    series = call(add, call(mul, t, _A[4]), _A[3])
    for factor in (_A[2], _A[1], _A[0]):
        series = call(add, call(mul, series, t), factor)
    bell = call(_ATEN.exp.default, call(mul, call(mul, x, x), -0.5))
    rest = call(mul, call(mul, call(mul, series, t), bell), call(mul, size, 0.5))
    swap(program.graph, node, call(_ATEN.sub.Tensor, call(_ATEN.relu.default, x), rest))


@dataclass(frozen=True)
class ConstantWhere:
    """A choice between two numbers as one between two constants: scalars would be made by kernels outside."""

    def run(self, program: Program) -> PassResult:
        """See the class."""
        found = [n for n in program.graph.nodes if n.target is _ATEN.where.Scalar]
        for node in found:
            mask, *numbers = node.args
            chosen = []
            for number in numbers:
                value = torch.full((1,), float(number), dtype=node.meta["val"].dtype)
                program, made = constant(program, f"executorch.number_{value.item()!r}".replace(".", "_"), value)
                chosen.append(made)
            swap(program.graph, node, caller(program.graph, node)(_ATEN.where.self, mask, *chosen))
        return PassResult(finish(program), len(found))


@dataclass(frozen=True)
class PlainScale:
    """`planish.resident_attention` with the scale 1 / sqrt(D); another factor goes into the query.

    Vulkan's runtime takes no other (`runtime/graph/ops/impl/SDPA.cpp` refuses a scale that is given).
    """

    def run(self, program: Program) -> PassResult:
        """See the class."""
        changed = 0
        for node in [n for n in program.graph.nodes if n.op == "call_function"]:
            if op_name(node) != "planish.resident_attention":
                continue
            q, scale = node.args[0], node.args[8]
            assert isinstance(q, fx.Node)
            assert isinstance(scale, float)
            plain = int(q.meta["val"].shape[3]) ** -0.5
            if not math.isclose(scale, plain, rel_tol=1e-6):
                node.replace_input_with(q, caller(program.graph, node)(_ATEN.mul.Tensor, q, scale / plain))
                changed += 1
            node.args = (*node.args[:8], plain, *node.args[9:])
        return PassResult(finish(program), changed)


@dataclass(frozen=True)
class WholeNorm:
    """Layer norms without weight or bias get ones and zeros: Vulkan's runtime refuses them otherwise.

    Norms over several axes are left as they are; the check of the payload refuses them.
    """

    def run(self, program: Program) -> PassResult:
        """See the class."""
        changed = 0
        for node in [n for n in program.graph.nodes if n.op == "call_function" and op_name(n) == "aten.layer_norm"]:
            given = arguments(node)
            weight, bias = given["weight"], given["bias"]
            if weight is not None and bias is not None:
                continue
            size, dtype = [int(s) for s in given["normalized_shape"]], node.meta["val"].dtype
            name = f"executorch.{{}}_{'x'.join(map(str, size))}"
            if weight is None:
                program, weight = constant(program, name.format("ones"), torch.ones(size, dtype=dtype))
            if bias is None:
                program, bias = constant(program, name.format("zeros"), torch.zeros(size, dtype=dtype))
            call = caller(program.graph, node)
            swap(program.graph, node, call(_ATEN.layer_norm.default, given["input"], size, weight, bias, given["eps"]))
            changed += 1
        return PassResult(finish(program), changed)
