"""Memory of a loaded .pte, estimated from the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from planish_targets.cost import Memory, Method
from planish_targets.executorch.pte import SCALAR_TYPES, PteFile
from planish_targets.executorch.work import NOWHERE, graph_values, inner, reads, writes

Graph = Mapping[str, Any]
# Measured with executorch 1.5.1 on x86-64 Linux; docs/executorch.md has the models and the errors.
_PER_OPERATION = 4096  # what XNNPACK keeps for each operation of a delegate
_CODE = 6 << 20  # code and tables of the runtime's libraries that the first call touches
BASIS = (
    "the file's constants (those of XNNPACK's products once for each product), its planned arena, values inside the "
    "largest delegate by their life spans, twice where lengths vary (XNNPACK takes a larger workspace before it gives "
    f"the old one back), {_PER_OPERATION} bytes per delegated operation and {_CODE >> 20} MiB of code"
)


def method(file: PteFile, graphs: Mapping[int, Graph]) -> Method:
    """The entry point `forward`.

    Args:
        file: the artifact.
        graphs: delegate -> XNNPACK graph.
    """
    tables = _tables(file)
    each = {index: _constants(graph) for index, graph in graphs.items()}
    sizes = {key: file.named_size(key) for graph in each.values() for key in graph}
    states = state_bytes(file)
    moving = 2 if _lengths_vary(file) else 1
    memory = Memory(
        stored=tables + sum(sizes.values()),
        mapped=tables,
        packed=sum(sizes[k] * times for graph in each.values() for k, times in graph.items()),
        activations=file.planned_bytes() - states,
        states=states,
        workspace=moving * max((_workspace(g) for g in graphs.values()), default=0),
        loading=max((sum(sizes[k] for k in graph) for graph in each.values()), default=0),
        bookkeeping=_PER_OPERATION * sum(len(g["xnodes"]) for g in graphs.values()),
        code=_CODE,
    )
    return Method(file.plan.name, len(file.plan.delegates), memory, memory.peak, BASIS)


def _tables(file: PteFile) -> int:
    """Bytes of constants of the plan, each once."""
    return sum(_nbytes(file.plan.values[index].val) for index in file.constants().values())


def _nbytes(tensor: Any) -> int:
    return torch.Size(tensor.sizes).numel() * SCALAR_TYPES[int(tensor.scalar_type)].itemsize


def _constants(graph: Graph) -> dict[str, int]:
    """Key of each constant of a delegate -> how often it is held: a weight of products once for each product."""
    stored, values = graph["constant_data"], {inner(v)["id_out"]: v for v in graph["xvalues"]}
    readers: dict[int, int] = {}
    for node in graph["xnodes"]:
        for index in reads(node):
            readers[index] = readers.get(index, 0) + (index == node["xnode_union"].get("filter_id"))
    found: dict[str, int] = {}
    for index, value in values.items():
        buffer = inner(value)["constant_buffer_idx"]
        scales = value["xvalue_union"].get("quant_params", {}).get("scale_buffer_idx", 0)
        for key in (stored[b]["named_key"] for b in (buffer, scales) if b):
            found[key] = found.get(key, 0) + max(readers.get(index, 0), 1)
    return found


def _workspace(graph: Graph) -> int:
    """The most bytes that are alive at once of values that stay inside a delegate."""
    values, inside = graph_values(graph), {}
    for value in graph["xvalues"]:
        tensor = inner(value)
        if tensor["external_id"] == NOWHERE and not tensor["constant_buffer_idx"]:
            inside[tensor["id_out"]] = values[tensor["id_out"]].nbytes
    last = {index: number for number, node in enumerate(graph["xnodes"]) for index in reads(node)}
    alive, most = dict[int, int](), 0
    for number, node in enumerate(graph["xnodes"]):
        alive |= {i: inside[i] for i in writes(node) if i in inside}
        most = max(most, sum(alive.values()))
        alive = {i: size for i, size in alive.items() if last.get(i, 0) > number}
    return most


def _lengths_vary(file: PteFile) -> bool:
    tensors = (v.val for v in file.plan.values if type(v.val).__name__ == "Tensor")
    return any(int(t.shape_dynamism) != 0 for t in tensors)


def state_bytes(file: PteFile) -> int:
    """Planned bytes of tensors that a call reads before it writes them: they live from call to call."""
    written = set(file.plan.inputs)
    found: dict[int, int] = {}
    for given, made in _steps(file):
        for index in given:
            tensor = file.plan.values[index].val
            if index in written or type(tensor).__name__ != "Tensor" or tensor.allocation_info is None:
                continue
            found[index] = _nbytes(tensor)
        written |= made
    return sum(found.values())


def _steps(file: PteFile) -> Iterator[tuple[list[int], set[int]]]:
    """(values read, values made) of each instruction."""
    for instruction in file.plan.chains[0].instructions:
        call = instruction.instr_args
        kind = type(call).__name__
        if kind == "KernelCall":
            made = _made(file.plan.operators[call.op_index], call.args)
            yield [a for a in call.args if a not in made], made
        elif kind == "DelegateCall":
            yield [], set(call.args)
        elif kind == "MoveCall":
            yield [call.move_from], {call.move_to}


def _made(operator: Any, args: Sequence[int]) -> set[int]:
    """What a kernel makes: its `out` arguments by its schema, or the last one, which comes twice."""
    space, _, name = operator.name.partition("::")
    found = getattr(getattr(getattr(torch.ops, space), name, None), operator.overload or "default", None)
    if found is None:
        return set(args[-2:])
    named = found._schema.arguments
    # What is marked and no keyword is changed in place: it is read as well.
    outs = {a for a, p in zip(args, named, strict=False) if p.kwarg_only and p.alias_info and p.alias_info.is_write}
    return outs | {*args[len(named) :]}
