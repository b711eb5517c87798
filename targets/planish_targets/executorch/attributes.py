"""Epsilons in a written .pte file: arguments of portable kernels, and constants inside delegates."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch

from planish_targets import attributes as steps
from planish_targets.attributes import Number, Step
from planish_targets.contract import Attribute, Unavailable
from planish_targets.executorch.payloads import delegate_steps, placed
from planish_targets.executorch.pte import SCALAR_TYPES, XNNPACK, PteFile, from_bytes, xnnpack_graphs

_MOVES = frozenset(
    (
        *("_to_dim_order_copy", "_to_copy", "_clone_dim_order", "clone", "view_copy", "permute_copy", "expand_copy"),
        *("unsqueeze_copy", "squeeze_copy", "transpose_copy", "alias_copy", "et_view"),
    )
)
_DELEGATED = {
    **dict.fromkeys(("XNNReciprocalSquareRoot", "XNNSquareRoot"), steps.ROOT),
    **dict.fromkeys(("XNNStaticTranspose", "XNNStaticReshape", "XNNConvert", "XNNCopy"), steps.SAME),
    "XNNAdd": steps.ADD,
}
_FLOATS = {"xnn_datatype_fp32": torch.float32, "xnn_datatype_fp16": torch.float16}
_INTERNAL = 0xFFFFFFFF  # external_id of a value that stays inside a delegate


def read(
    file: PteFile, kernels: Sequence[str], handles: Mapping[str, str], inner: Mapping[str, str] | None = None
) -> tuple[Attribute, ...] | Unavailable:
    """Epsilons of the plan and of its delegates, across their borders.

    Args:
        file: the artifact.
        kernels: source module per instruction, empty for an artifact from elsewhere.
        handles: debug handle (as text) of an operation that XNNPACK computes -> source module.
        inner: "delegate:operation" of other delegates -> source module.
    """
    others = delegate_steps(file, inner or {})
    if isinstance(others, Unavailable):
        return others
    graphs, found, constants = xnnpack_graphs(file), list[Step](), dict[Hashable, Number]()
    for index, value in enumerate(file.plan.values):
        number = _number(file, index, value.val)
        if number is not None:
            constants[index] = number
    for index, instruction in enumerate(file.plan.chains[0].instructions):
        call, module = instruction.instr_args, kernels[index] if index < len(kernels) else ""
        kind = type(call).__name__
        if kind == "KernelCall":
            operator = file.plan.operators[call.op_index]
            found.append(_kernel(operator.name, operator.overload, call.args, constants, module))
        elif kind == "DelegateCall" and call.delegate_index in others:
            part = placed(others[call.delegate_index], index, call.args)
            constants |= part.numbers
            found += part.steps
        elif kind == "DelegateCall":
            graph = graphs[call.delegate_index]
            keys = _keys(graph, index, call.args)
            constants |= _inner_numbers(file, graph, keys)
            found += _delegated(graph, keys, handles)
    return steps.attributes(found, constants.get)


def _number(file: PteFile, index: int, value: Any) -> Number | None:
    kind = type(value).__name__
    if kind in ("Double", "Int"):
        return Number(float(value.double_val if kind == "Double" else value.int_val))
    if kind != "Tensor" or not file.is_constant(index) or torch.Size(value.sizes).numel() != 1:
        return None
    dtype = SCALAR_TYPES[int(value.scalar_type)]
    return Number(float(file.constant(index)), dtype) if dtype.is_floating_point else None


def _kernel(name: str, overload: str, args: Sequence[int], numbers: Mapping[Hashable, Number], module: str) -> Step:
    """A call of a portable kernel: arguments in the order of the operator's schema, what it returns behind them."""
    short = name.split("::")[-1]
    output = args[-1] if args else None
    if "norm" in short:
        given = dict(zip(_argument_names(name, overload), args, strict=False))
        epsilon = numbers.get(given.get("eps", -1))
        return Step(steps.NORM, name, (), output, module, epsilon)
    if short == "add":
        return Step(steps.ADD, name, tuple(args[:2]), output, module)
    power = numbers.get(args[1]) if short == "pow" else None
    if short in ("sqrt", "rsqrt") or (power is not None and steps.is_half(power.value)):
        return Step(steps.ROOT, name, (args[0],), output, module)
    return Step(steps.SAME if short in _MOVES else steps.OTHER, name, tuple(args[:1]), output, module)


def _argument_names(name: str, overload: str) -> list[str]:
    space, _, operator = name.partition("::")
    packet = getattr(getattr(torch.ops, space), operator, None)
    found = getattr(packet, overload or "default", None)
    return [a.name for a in found._schema.arguments] if found is not None else []


def _keys(graph: Mapping[str, Any], instruction: int, args: Sequence[int]) -> dict[int, Hashable]:
    """XNNPACK's id of a value -> index in the plan for what goes in and out, a key of its own for what stays inside."""
    keys: dict[int, Hashable] = {}
    for value in graph["xvalues"]:
        tensor = _tensor(value)
        outside = tensor["external_id"]
        keys[tensor["id_out"]] = (instruction, tensor["id_out"]) if outside == _INTERNAL else args[outside]
    return keys


def _tensor(value: Mapping[str, Any]) -> Mapping[str, Any]:
    union = value["xvalue_union"]
    return union.get("tensor_value", union)  # type: ignore[no-any-return]


def _inner_numbers(file: PteFile, graph: Mapping[str, Any], keys: Mapping[int, Hashable]) -> dict[Hashable, Number]:
    found: dict[Hashable, Number] = {}
    for value in graph["xvalues"]:
        tensor = _tensor(value)
        buffer, dtype = tensor["constant_buffer_idx"], _FLOATS.get(tensor["datatype"])
        if buffer and dtype is not None and torch.Size(tensor["dims"]).numel() == 1:
            data = file.named(graph["constant_data"][buffer]["named_key"])
            found[keys[tensor["id_out"]]] = Number(float(from_bytes(data, dtype, (1,))), dtype)
    return found


def _delegated(graph: Mapping[str, Any], keys: Mapping[int, Hashable], handles: Mapping[str, str]) -> Iterator[Step]:
    for node in graph["xnodes"]:
        operator, union = node["xnode_union_type"].removeprefix("_"), node["xnode_union"]
        given = tuple(keys.get(union[name]) for name in ("input_id", "input1_id", "input2_id") if name in union)
        kind = _DELEGATED.get(operator, steps.OTHER)
        module = handles.get(str(node["debug_handle"]), "")
        yield Step(kind, f"{XNNPACK}.{operator}", given, keys.get(union.get("output_id", _INTERNAL)), module)
