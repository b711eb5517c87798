"""Where each operation of a .pte runs: in a delegate, or in a portable kernel, read from the file itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from planish_targets.contract import Placed, Placement, Unavailable
from planish_targets.executorch.delegates.delegate import Payload
from planish_targets.executorch.memory import method
from planish_targets.executorch.payloads import of_delegate, payloads
from planish_targets.executorch.pte import SCALAR_TYPES, XNNPACK, PteFile, xnnpack_graphs
from planish_targets.executorch.work import delegated_work, graph_values, kernel_work, plan_value

_SOURCE = "execution plan of the .pte and the payloads of its delegates"


def placement(
    file: PteFile,
    kernels: Sequence[str],
    handles: Mapping[str, str],
    inner: Mapping[str, str] | None = None,
    reasons: Mapping[str, str] | None = None,
) -> Placement:
    """One entry per operation.

    Args:
        file: the artifact.
        kernels: source module per instruction, empty for an artifact from elsewhere.
        handles: debug handle (as text) of an operation that XNNPACK computes -> source module.
        inner: "delegate:operation" of other delegates -> source module.
        reasons: operator -> why its partitioner left it to portable kernels, where that is recorded.
    """
    graphs, others = xnnpack_graphs(file), payloads(file)
    nodes: list[Placed] = []
    for index, instruction in enumerate(file.plan.chains[0].instructions):
        call, module = instruction.instr_args, kernels[index] if index < len(kernels) else ""
        kind = type(call).__name__
        if kind == "KernelCall":
            operator = file.plan.operators[call.op_index].name
            reason = (reasons or {}).get(operator) or _reason(operator, file)
            where, work = f"instruction {index}", kernel_work(operator, [plan_value(file, a) for a in call.args])
            nodes.append(Placed(where, operator, "fallback", "portable kernel", reason, module, work))
        elif kind == "DelegateCall" and call.delegate_index in others:
            nodes += _other(index, call.delegate_index, file, others[call.delegate_index], inner or {})
        elif kind == "DelegateCall":
            nodes += _delegated(index, graphs[call.delegate_index], handles)
    crossings = sum(type(i.instr_args).__name__ == "DelegateCall" for i in file.plan.chains[0].instructions)
    advice = (f"{crossings} separate delegates, each one a hand-over from portable kernels and back",)
    problems = tuple(p for payload in others.values() if isinstance(payload, Payload) for p in payload.problems)
    methods = () if others else (method(file, graphs),)
    return Placement(_SOURCE, tuple(nodes), problems, advice if crossings > 1 else (), methods)


def _delegated(index: int, graph: Mapping[str, Any], handles: Mapping[str, str]) -> Iterator[Placed]:
    values = graph_values(graph)
    for number, node in enumerate(graph["xnodes"]):
        module = handles.get(str(node["debug_handle"]), "")
        operator = node["xnode_union_type"].removeprefix("_")
        work = delegated_work(node, values)
        yield Placed(f"instruction {index}.{number}", operator, "accelerated", XNNPACK, "", module, work)


def _other(
    index: int, delegate: int, file: PteFile, payload: Payload | Unavailable, inner: Mapping[str, str]
) -> Iterator[Placed]:
    backend = file.plan.delegates[delegate].id
    if isinstance(payload, Unavailable):
        yield Placed(f"instruction {index}", "delegate", "unknown", backend, payload.reason)
        return
    modules = of_delegate(inner, delegate)
    for operation in payload.operations:
        module = modules.get(operation.key, "")
        yield Placed(f"instruction {index}.{operation.key}", operation.op, "accelerated", backend, module=module)


def _reason(operator: str, file: PteFile) -> str:
    backends = {d.id for d in file.plan.delegates} or {XNNPACK}
    if backends != {XNNPACK}:
        return f"the partitioner of {', '.join(sorted(backends))} does not take it"
    return _REASONS.get(operator.split("::")[-1], "XNNPACK's partitioner does not take it")


_REASONS = {
    **dict.fromkeys(("embedding", "embedding_byte", "embedding_4bit"), "XNNPACK has no table lookup"),
    "custom_sdpa": "attention over a cache has a kernel of its own",
    "update_cache": "caches are written in place by a kernel of their own",
    "native_layer_norm": "XNNPACK has no layer norm",
    "where": "XNNPACK has no selection; the mask is computed once per call",
    "_to_dim_order_copy": "XNNPACK's partitioner takes no conversion from integers or booleans",
}


def describe(file: PteFile) -> dict[str, object]:
    """What `inspect` shows of a bare file."""
    plan, ops = file.plan, Counter[str]()
    for instruction in plan.chains[0].instructions:
        call = instruction.instr_args
        if type(call).__name__ == "KernelCall":
            ops[plan.operators[call.op_index].name] += 1
    for graph in xnnpack_graphs(file).values():
        ops.update(f"{XNNPACK}.{n['xnode_union_type'].removeprefix('_')}" for n in graph["xnodes"])
    others = {i: p for i, p in payloads(file).items() if isinstance(p, Payload)}
    for index, payload in others.items():
        ops.update(f"{plan.delegates[index].id}.{o.op}" for o in payload.operations)
    return {
        "format": f"ExecuTorch program, version {file.program.version}",
        "ops": dict(ops),
        "dtypes": _stored_bytes(file, others.values()),
        "inputs": [_port(plan.values[i].val) for i in plan.inputs],
        "outputs": [_port(plan.values[i].val) for i in plan.outputs],
        "bytes": file.path.stat().st_size,
        "delegates": dict(Counter(d.id for d in plan.delegates)),
        "planned_bytes": file.planned_bytes(),
    }


def _port(tensor: Any) -> str:
    if type(tensor).__name__ != "Tensor":
        return type(tensor).__name__
    dtype = str(SCALAR_TYPES.get(int(tensor.scalar_type), tensor.scalar_type)).removeprefix("torch.")
    return f"{dtype}[{', '.join(str(s) for s in tensor.sizes)}]"


def _stored_bytes(file: PteFile, others: Iterable[Payload]) -> dict[str, int]:
    """dtype -> bytes of constants in the file, each counted once."""
    total, seen = Counter[str](), set[object]()
    for index in file.constants().values():
        tensor = file.plan.values[index].val
        dtype = SCALAR_TYPES[int(tensor.scalar_type)]
        total[str(dtype).removeprefix("torch.")] += torch.Size(tensor.sizes).numel() * dtype.itemsize
    for graph in xnnpack_graphs(file).values():
        for value in graph["xvalues"]:
            tensor = value["xvalue_union"].get("tensor_value", value["xvalue_union"])
            key = graph["constant_data"][tensor["constant_buffer_idx"]]["named_key"]
            if tensor["constant_buffer_idx"] and key not in seen:
                seen.add(key)
                total[_DATATYPES.get(tensor["datatype"], tensor["datatype"])] += file.named_size(key)
    for payload in others:
        total.update(payload.dtypes)
    return dict(total)


_DATATYPES = {
    "xnn_datatype_fp32": "float32",
    "xnn_datatype_fp16": "float16",
    "xnn_datatype_qcint8": "int8",
    "xnn_datatype_qint8": "int8",
    "xnn_datatype_qcint4": "int4",
    "xnn_datatype_qbint4": "int4",
}
