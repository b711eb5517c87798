"""Quantise weights, once, on the shared program: all targets encode these integers and scales."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from planish_passes.infra import PassResult, Refusal
from planish_passes.program import Program, add_weight, finish, op_name
from planish_passes.weights import QuantizedTensor, TensorSpec, WeightFormat

INT8 = WeightFormat(8)
VALUES, SCALES = ".q_values", ".q_scales"

_COVERED = {"aten.linear": 1, "aten.embedding": 0}  # operator -> which argument is the weight
_OTHER = ("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.matmul", "aten.bmm", "aten.mm", "aten.addmm")


@dataclass(frozen=True)
class Quantise:
    """Weights of linears and embeddings to integers, per output channel or row, round to nearest.

    What is left in floating point is listed with its reason: convolutions and matrix products (not covered by this
    recipe), weights that are computed at run time, and weights that are also used in another way.

    Args:
        format: integers and scales.
    """

    format: WeightFormat = INT8

    def run(self, program: Program) -> PassResult:
        """See the class."""
        names, refused, changed = program.weight_names(), [], 0
        sites: dict[str, list[fx.Node]] = defaultdict(list)
        for node in program.graph.nodes:
            if node.op != "call_function":
                continue
            if op_name(node) in _COVERED:
                reason = _unfit(node, names)
                if reason is None:
                    sites[names[_weight(node).name]].append(node)
                else:
                    refused.append(Refusal.of(node, reason))
            elif op_name(node) in _OTHER and any(_trained(program, names, a) for a in node.args):
                refused.append(Refusal.of(node, "this recipe covers linear and embedding weights only"))
        for name, nodes in sites.items():
            program = _quantise_weight(program, name, nodes, self.format)
            changed += len(nodes)
        return PassResult(finish(program), changed, tuple(refused))


def _weight(node: fx.Node) -> fx.Node:
    weight = node.args[_COVERED[op_name(node)]]
    assert isinstance(weight, fx.Node)
    return weight


def _trained(program: Program, names: dict[str, str], argument: object) -> bool:
    return (
        isinstance(argument, fx.Node) and argument.name in names and bool(program.weights.sources(names[argument.name]))
    )


def _unfit(node: fx.Node, names: dict[str, str]) -> str | None:
    weight = _weight(node)
    if weight.name not in names:
        return "its weight is computed at run time"
    others = [
        u for u in weight.users if u.op != "call_function" or op_name(u) not in _COVERED or _weight(u) is not weight
    ]
    if others:
        return f"its weight is also used by {', '.join(sorted(u.name for u in others))}"
    return None


def _quantise_weight(program: Program, name: str, nodes: list[fx.Node], format: WeightFormat) -> Program:
    rows, columns = program.weights.spec(name).shape
    fake = _weight(nodes[0]).meta["val"]
    groups = columns // format.group if format.group else 1

    def scales(weight: Tensor) -> Tensor:
        return symmetric_scales(weight, format)

    def values(weight: Tensor) -> Tensor:
        return symmetric_values(weight, symmetric_scales(weight, format), format)

    store = program.weights.derive(name + VALUES, (name,), values, TensorSpec((rows, columns), torch.int8))
    store = store.derive(name + SCALES, (name,), scales, TensorSpec((rows, groups), torch.float32))
    program = replace(program, weights=store)
    with fake.fake_mode:
        integers = add_weight(program, name + VALUES, torch.empty(rows, columns, dtype=torch.int8))
        factors = add_weight(program, name + SCALES, torch.empty(rows, groups, dtype=torch.float32))
    for node in nodes:
        _replace_call(program, node, integers, factors, format)
    return program


def _replace_call(program: Program, node: fx.Node, integers: fx.Node, factors: fx.Node, format: WeightFormat) -> None:
    with program.graph.inserting_before(node):
        if op_name(node) == "aten.linear":
            bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
            target = torch.ops.planish.linear_q.default
            arguments: tuple[Any, ...] = (node.args[0], integers, factors, None, bias, format.bits, "none")
        else:
            target = torch.ops.planish.embedding_q.default
            arguments = (node.args[1], integers, factors, None, format.bits)
        new = program.graph.call_function(target, arguments)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    program.graph.erase_node(node)


def symmetric_scales(weight: Tensor, format: WeightFormat) -> Tensor:
    """Scale per row and group so that the largest magnitude maps to the largest integer.

    Scales are rounded up to float16 values, so that targets that store them as float16 and targets that store them as
    float32 hold the same numbers.

    Args:
        weight: float [N, K].

    Returns:
        float32 [N, G], positive.
    """
    rows, columns = weight.shape
    grouped = weight.to(torch.float32).view(rows, -1, format.group or columns)
    exact = grouped.abs().amax(dim=-1) / format.range[1]
    half = exact.to(torch.float16)
    up = torch.nextafter(half, torch.full_like(half, float("inf")))
    scales = torch.where(half.to(torch.float32) < exact, up, half).to(torch.float32)
    smallest = 2.0**-14  # the smallest normal float16: runtimes flush what lies below
    return scales.clamp(min=smallest)


def symmetric_values(weight: Tensor, scales: Tensor, format: WeightFormat) -> Tensor:
    """Round to nearest (ties to even): int8 [N, K]."""
    rows, _ = weight.shape
    low, high = format.range
    grouped = weight.to(torch.float32).view(rows, scales.shape[1], -1)
    return torch.round(grouped / scales[..., None]).clamp(low, high).to(torch.int8).view(weight.shape)


def quantized(program: Program) -> dict[str, QuantizedTensor]:
    """The quantised weights of a program, by the name of the weight that they replace."""
    found: dict[str, QuantizedTensor] = {}
    names = program.weight_names()
    for node in program.graph.nodes:
        if node.op != "call_function" or op_name(node) not in ("planish.linear_q", "planish.embedding_q"):
            continue
        name = names[node.args[1].name].removesuffix(VALUES)
        if name not in found:
            values, scales = program.weights.read(name + VALUES), program.weights.read(name + SCALES)
            bits = int(node.args[5] if op_name(node) == "planish.linear_q" else node.args[4])
            group = 0 if scales.shape[1] == 1 else values.shape[1] // scales.shape[1]
            found[name] = QuantizedTensor(values, scales, None, WeightFormat(bits, group))
    return found
