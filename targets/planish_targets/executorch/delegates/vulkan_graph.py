"""The payload of executorch's Vulkan delegate: a flatbuffer of operator calls, and the rules that it must keep.

Layout: executorch's backends/vulkan/serialization/vulkan_graph_serialize.py ("VH00", sizes) and schema.fbs ("VK00").
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from planish_passes.errors import PlanishError
from planish_targets import attributes as steps
from planish_targets.attributes import Number, Step
from planish_targets.executorch.delegates.delegate import Operation, Payload, Steps
from planish_targets.executorch.pte import PteFile, from_bytes
from planish_targets.quiet import quiet

_HEAD = struct.Struct("<4x4sHIIIQ")  # magic, length of the header, flatbuffer (offset, size), bytes (offset, size)
_NAMED = 2**64 - 1  # offset of a constant that lies in a segment of its own
_DTYPES = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "INT8": torch.int8,
    "INT32": torch.int32,
    "FLOAT16": torch.float16,
    "FLOAT32": torch.float32,
    "FLOAT64": torch.float64,
    "INT64": torch.int64,
}
_SCALARS = {"Int": "int_val", "Double": "double_val", "Bool": "bool_val", "String": "string_val", "SymInt": "value"}
_MOVES = frozenset(
    (
        *("view_copy", "permute_copy", "squeeze_copy", "unsqueeze_copy", "expand_copy", "clone", "_to_copy"),
        *("_to_dim_order_copy", "_clone_dim_order", "alias_copy", "prepack"),
    )
)


@dataclass(frozen=True)
class VulkanGraph:
    """One payload.

    Args:
        file: the .pte that holds it, for constants in segments of their own.
        graph: the flatbuffer as JSON values.
        rest: bytes behind the flatbuffer.
    """

    file: PteFile
    graph: Mapping[str, Any]
    rest: bytes

    def tensor(self, value: int) -> Mapping[str, Any] | None:
        """The description of a tensor; None for other values."""
        entry = self.graph["values"][value]
        return entry["value"] if entry["value_type"] == "VkTensor" else None

    def plain(self, value: int) -> Any:
        """A number, text or list that a call is given; None for anything else."""
        entry = self.graph["values"][value]
        kind, held = entry["value_type"], entry["value"]
        return held[_SCALARS[kind]] if kind in _SCALARS else held.get("items") if kind.endswith("List") else None

    def is_none(self, value: int) -> bool:
        """True where an optional argument was left out."""
        return bool(self.graph["values"][value]["value_type"] == "Null")

    def constant(self, value: int) -> torch.Tensor | None:
        """The data of a constant; None for other values.

        Raises:
            PlanishError: its bytes are not there.
        """
        tensor = self.tensor(value)
        if tensor is None or tensor["constant_id"] < 0:
            return None
        return from_bytes(self._data(tensor["constant_id"]), _DTYPES[tensor["datatype"]], tuple(tensor.get("dims", ())))

    def _data(self, constant: int) -> bytes:
        at = self.graph["constants"][constant]
        if at["offset"] == _NAMED:
            return self.file.named(at["named_key"])[: at["length"]]
        return self.rest[at["offset"] : at["offset"] + at["length"]]

    @cached_property
    def calls(self) -> list[tuple[Mapping[str, Any], dict[str, int], int]]:
        """(call, argument of the operator's schema -> value, value that it makes)."""
        return [(call, _arguments(call), call["args"][-1]) for call in self.graph["chain"]]


def read(file: PteFile, index: int) -> VulkanGraph:
    """Delegate `index` of a file.

    Raises:
        PlanishError: its payload is not whole.
    """
    payload, where = file.payload(index), f"{file.path}, delegate {index}"
    if len(payload) < _HEAD.size:
        raise _broken("is shorter than its header", where)
    magic, length, begin, size, after, count = _HEAD.unpack(payload[: _HEAD.size])
    if (magic, length) != (b"VH00", _HEAD.size):
        raise _broken("does not begin as one", where)
    if begin + size > after or after + count > len(payload) or size < 8:
        raise _broken(f"is cut off: {len(payload):,} of {after + count:,} bytes are there", where)
    flat = payload[begin : begin + size]
    if flat[4:8] != b"VK00":
        raise _broken("holds no graph of version VK00", where)
    graph = VulkanGraph(file, _parsed(flat, where), payload[after : after + count])
    _know_operators()
    return graph


@cache
def _know_operators() -> None:
    """Register the schemas of operators that are not torch's own: arguments of calls have names by them alone."""
    with quiet():
        from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401


def _broken(what: str, where: str) -> PlanishError:
    return PlanishError(f"the Vulkan payload {what}", where, "compile the model again, or copy the file again")


def _parsed(flat: bytes, where: str) -> Mapping[str, Any]:
    with quiet():
        import executorch.backends.vulkan.serialization as schema
        from executorch.exir._serialize._flatbuffer import _run_flatc
    with tempfile.TemporaryDirectory(prefix="planish-pte-") as scratch:
        rules, binary = Path(schema.__path__[0], "schema.fbs"), Path(scratch, "graph.bin")
        binary.write_bytes(flat)
        try:
            _run_flatc(["--json", "--defaults-json", "--strict-json", "-o", scratch, str(rules), "--", str(binary)])
            text = Path(scratch, "graph.json").read_text()
            # flatc prints infinities bare, which is not JSON
            found = json.loads(re.sub(r"(?<=[:\[,\s])([+-]?)(inf|nan)\b(?=[\s,}\]])", r'"\1\2"', text))
        except (OSError, ValueError, subprocess.SubprocessError) as problem:
            raise _broken(f"cannot be read ({type(problem).__name__})", where) from problem
    return {key: found.get(key) or [] for key in ("chain", "values", "input_ids", "output_ids", "constants")}


def _operator(name: str) -> Any:
    """The torch operator of a call's name ("aten.linear.default"); None where this process has none."""
    parts = name.split(".")
    space, operator, overload = parts if len(parts) == 3 else ("llama", *parts)  # the serialiser drops this namespace
    return getattr(getattr(getattr(torch.ops, space), operator, None), overload, None)


def _arguments(call: Mapping[str, Any]) -> dict[str, int]:
    found = _operator(call["name"])
    names = [a.name for a in found._schema.arguments] if found is not None else []
    return dict(zip(names, call["args"][:-1], strict=False))


def payload(graph: VulkanGraph) -> Payload:
    """Its operations, its constants by dtype, and the rules that it breaks."""
    problems = (*_dangling(graph), *_constants(graph), *_operators(graph))
    operations = tuple(Operation(c["name"], str(c["node_id"])) for c in graph.graph["chain"])
    sizes: Counter[str] = Counter()
    if not problems:
        for value in range(len(graph.graph["values"])):
            tensor = graph.tensor(value)
            if tensor is not None and tensor["constant_id"] >= 0:
                dtype = str(_DTYPES[tensor["datatype"]]).removeprefix("torch.")
                sizes[dtype] += graph.graph["constants"][tensor["constant_id"]]["length"]
    return Payload(operations, dict(sizes), problems)


def _dangling(graph: VulkanGraph) -> Iterator[str]:
    count = len(graph.graph["values"])
    for call in graph.graph["chain"]:
        if not call["args"] or not all(0 <= a < count for a in call["args"]):
            yield f"{call['name']} (call {call['node_id']}) reads values that are not there"
    if not all(0 <= v < count for v in (*graph.graph["input_ids"], *graph.graph["output_ids"])):
        yield "an input or output is no value of the graph"


def _constants(graph: VulkanGraph) -> Iterator[str]:
    stored, constants = {e.key for e in graph.file.program.named_data or ()}, graph.graph["constants"]
    for number, at in enumerate(constants):
        if at["offset"] == _NAMED and at["named_key"] not in stored:
            yield f"constant {number} is not in the file"
        elif len(graph._data(number)) < at["length"]:
            yield f"constant {number} is cut off"
    for value in range(len(graph.graph["values"])):
        tensor = graph.tensor(value)
        if tensor is None or tensor["constant_id"] < 0:
            continue
        if tensor["constant_id"] >= len(constants):
            yield f"value {value} names constant {tensor['constant_id']}, which is not there"
            continue
        needed = torch.Size(tensor.get("dims", ())).numel() * _DTYPES[tensor["datatype"]].itemsize
        if needed > constants[tensor["constant_id"]]["length"]:
            yield f"a constant of {list(tensor.get('dims', ()))} is shorter than its {needed} bytes"


def _operators(graph: VulkanGraph) -> Iterator[str]:
    """Calls that executorch's partitioner and serialiser let pass and its runtime computes otherwise, or refuses."""
    registered = _registered()
    for call, given, _ in graph.calls:
        if call["name"] not in registered:
            yield f"the Vulkan runtime has no operator {call['name']}"
        elif call["name"] in _RULES:
            holds, what = _RULES[call["name"]]
            if not holds(graph, given):
                yield f"{call['name']} (call {call['node_id']}): {what}"


def _tanh(graph: VulkanGraph, given: Mapping[str, int]) -> bool:
    return bool(graph.plain(given["approximate"]) == "tanh")


def _whole(graph: VulkanGraph, given: Mapping[str, int]) -> bool:
    left_out = graph.is_none(given["weight"]) or graph.is_none(given["bias"])
    return not left_out and len(graph.plain(given["normalized_shape"]) or ()) == 1


def _plain_attention(graph: VulkanGraph, given: Mapping[str, int]) -> bool:
    return graph.is_none(given["scale"]) and graph.is_none(given["attn_mask"])


def _one_batch(graph: VulkanGraph, given: Mapping[str, int]) -> bool:
    cache = graph.tensor(given["cache"])
    return cache is not None and list(cache["dims"])[-4:-3] in ([], [1])


# Operator -> what must hold, and what the runtime does otherwise, with the source under executorch/backends/vulkan.
_RULES: Mapping[str, tuple[Callable[[VulkanGraph, Mapping[str, int]], bool], str]] = {
    "aten.gelu.default": (_tanh, "the runtime computes the tanh form for both (runtime/graph/ops/glsl/unary_op.yaml)"),
    "aten.native_layer_norm.default": (
        _whole,
        "the runtime refuses it without weight or bias, and over several axes (ops/impl/NativeLayerNorm.cpp)",
    ),
    "sdpa_with_kv_cache.default": (_plain_attention, "the runtime refuses a scale and a mask (ops/impl/SDPA.cpp)"),
    "update_cache.default": (_one_batch, "the runtime refuses caches of more than one batch (ops/impl/SDPA.cpp)"),
}


def _registered() -> frozenset[str]:
    """Names in executorch's list of operators of its runtime, and those of its own that its patterns put in."""
    with quiet():
        from executorch.backends.vulkan.op_registry import vulkan_supported_ops
    names = {op if isinstance(op, str) else getattr(op, "__name__", "") for op in vulkan_supported_ops}
    by_name = {f"{n.partition('::')[2]}.default" for n in names if "::" in n}  # the serialiser drops the namespace
    own = {n for n in torch._C._dispatch_get_all_op_names() if n.startswith("et_vk::")}
    return frozenset(names | by_name | {f"{n.replace('::', '.')}.default" for n in own})


def graph_steps(graph: VulkanGraph, modules: Mapping[str, str]) -> Steps:
    """The payload for finding epsilons; keys are indices of values."""
    numbers: dict[Any, Number] = {}
    for value in range(len(graph.graph["values"])):
        number = _number(graph, value)
        if number is not None:
            numbers[value] = number
    found = [_step(call, given, made, numbers, modules) for call, given, made in graph.calls]
    return Steps(tuple(found), numbers, (*graph.graph["input_ids"], *graph.graph["output_ids"]))


def _number(graph: VulkanGraph, value: int) -> Number | None:
    kind = graph.graph["values"][value]["value_type"]
    if kind in ("Int", "Double"):
        return Number(float(graph.plain(value)))
    tensor = graph.tensor(value)
    if tensor is None or tensor["constant_id"] < 0 or torch.Size(tensor.get("dims", ())).numel() != 1:
        return None
    data = graph.constant(value)
    return Number(float(data), data.dtype) if data is not None and data.dtype.is_floating_point else None


def _step(
    call: Mapping[str, Any], given: dict[str, int], made: int, numbers: Mapping[Any, Number], modules: Mapping[str, str]
) -> Step:
    name, module = call["name"], modules.get(str(call["node_id"]), "")
    short, first = name.split(".")[1], tuple(list(given.values())[:1] or call["args"][:1])
    if "eps" in given and "norm" in short:
        return Step(steps.NORM, name, (), made, module, numbers.get(given["eps"]))
    if short == "add":
        return Step(steps.ADD, name, (given["self"], given["other"]), made, module)
    power = numbers.get(given.get("exponent", -1)) if short == "pow" else None
    if short in ("sqrt", "rsqrt") or (power is not None and steps.is_half(power.value)):
        return Step(steps.ROOT, name, first, made, module)
    return Step(steps.SAME if short in _MOVES else steps.OTHER, name, first, made, module)
