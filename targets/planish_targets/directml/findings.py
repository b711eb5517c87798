"""The rules themselves: what a node, or the file as a whole, is refused, doubted or advised for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Literal

from planish_targets.directml import graph, kernels

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

MODEL = "<model>"
Status = Literal["registered", "refused", "unknown"]

_MS = "com.microsoft"
_NORMS = frozenset(
    {"LayerNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}
)
_IGNORED = frozenset({"softcap", "local_window_size", "smooth_softmax", "kv_cache_bit_width", "k_quant_type"})
_LOOPS = frozenset({"Loop", "Scan"})


@dataclass(frozen=True)
class Finding:
    """What one rule says. `placement_in_doubt`: the node may not run on DirectML at all."""

    rule: str
    status: Status
    reason: str
    op: str = ""
    placement_in_doubt: bool = False


@dataclass(frozen=True)
class Context:
    """The graph around a node: values known on the host before the node runs, and who writes which value."""

    view: graph.View
    host: frozenset[str]
    producers: Mapping[str, int]

    def producer(self, name: str) -> NodeProto | None:
        """The node of this graph that writes `name`."""
        index = self.producers.get(name)
        return None if index is None else self.view.nodes[index]


def op_name(node: NodeProto) -> str:
    """`domain::op_type`, the default domain left out."""
    domain = graph.domain_of(node)
    return node.op_type if domain == "ai.onnx" else f"{domain}::{node.op_type}"


# --- kernel lookup (rules 1, 2, 4, 10, 11) ---


def match_kernel(view: graph.View, node: NodeProto) -> kernels.Kernel | Finding:
    """The kernel for the node's schema version at the model's opset and its types, or why there is none."""
    domain, op = graph.domain_of(node), node.op_type
    if domain == kernels.INTERNAL_DOMAIN:
        reason = f"{op_name(node)} is an internal fusion target of the runtime."
        return Finding("DML011-internal-domain", "refused", reason)
    signature = kernels.signature(domain, op, view.opsets.get(domain, 1))
    since = signature.since_version if signature else 1
    if found := kernels.kernel(domain, op, since):
        wrong = (f for f in _types(view, node, found) if f.status == "refused")
        return next(wrong, found)
    if domain == _MS and op == "GatherBlockQuantized":
        reason = "GatherBlockQuantized is not registered; keep the embedding float or accept the CPU for it."
        return Finding("DML004-gather-block-quantized", "refused", reason)
    others = kernels.kernels().get((domain, op), ())
    if op in _LOOPS or op == "If":
        reason = f"No {op} kernel for schema version {since}, and control flow rules out graph capture."
        return Finding("DML010-control-flow", "refused", reason)
    if signature and signature.is_function:
        reason = f"No kernel for {op} version {since}; the runtime may inline its function body or run it on the CPU."
        return Finding("DML002-no-kernel", "unknown", reason)
    if not others:
        return Finding("DML002-no-kernel", "refused", f"DirectML {kernels.VERSION} registers no {op_name(node)}.")
    rule = "DML001-opset" if since > kernels.MAX_OPSET else "DML002-version"
    have = ", ".join(str(k.since_version) for k in others)
    reason = f"{op_name(node)} has schema version {since} here; DirectML registers {have} and needs an equal one."
    return Finding(rule, "refused", reason)


# --- one node that has a kernel ---


def of_node(context: Context, node: NodeProto, kernel: kernels.Kernel) -> Iterator[Finding]:
    """Everything the rules say about a node that has a kernel."""
    # At equal weight the first one speaks: an operator's own rule says more than the general ones.
    if rule := _PER_OP.get((kernel.domain, kernel.op)):
        yield from rule(context, node)
    yield from _fp16_norm(context, node)
    yield from _types(context.view, node, kernel)
    yield from _cpu_inputs(context, node, kernel)


def _types(view: graph.View, node: NodeProto, kernel: kernels.Kernel) -> Iterator[Finding]:
    domain = graph.domain_of(node)
    signature = kernels.signature(domain, node.op_type, view.opsets.get(domain, 1))
    if signature is None:
        reason = "The operator's type parameters are not known."
        yield Finding("DML002-type", "unknown", reason, placement_in_doubt=True)
        return
    seen: dict[str, set[str | None]] = {}
    for names, parameter_of in ((node.input, signature.input), (node.output, signature.output)):
        for i, name in enumerate(names):
            if name and (parameter := parameter_of(i)) is not None:
                seen.setdefault(parameter, set()).add(view.types.get(name))
    for parameter, admitted in kernel.types.items():
        types = seen.get(parameter, set())
        known = {t for t in types if t is not None}
        if admitted is None or not types:
            continue
        if wrong := known - admitted:
            reason = f"{parameter} is {', '.join(sorted(wrong))}; the kernel admits {', '.join(sorted(admitted))}."
            yield Finding("DML002-type", "refused", reason, placement_in_doubt=True)
        elif not known:
            reason = f"The type of {parameter} could not be inferred."
            yield Finding("DML002-type", "unknown", reason, placement_in_doubt=True)


def _cpu_inputs(context: Context, node: NodeProto, kernel: kernels.Kernel) -> Iterator[Finding]:
    for i in sorted(kernel.cpu_inputs):
        name = node.input[i] if i < len(node.input) else ""
        if not name or name in context.host:
            continue
        how = "fed by the caller" if name in context.view.inputs else "computed on the device or in an outer graph"
        reason = f"Input {i} ({name}) is read on the host and should be a constant or a shape computation; it is {how}."
        yield Finding("DML002-cpu-input", "unknown", reason)


def _fp16_norm(context: Context, node: NodeProto) -> Iterator[Finding]:
    if not node.input or context.view.types.get(node.input[0]) != "float16":
        return
    if node.op_type in _NORMS or (node.op_type == "ReduceMean" and _is_square(context.producer(node.input[0]))):
        reason = "A norm in float16 overflows where mean(x^2) passes 65504; put Casts to float32 around it."
        yield Finding("DML015-fp16-norm", "unknown", reason)


def _is_square(node: NodeProto | None) -> bool:
    if node is None:
        return False
    # An exponent other than 2 before a mean is not met in norms; its value is not looked at.
    return node.op_type == "Pow" or (node.op_type == "Mul" and node.input[0] == node.input[1])


def _reshape(context: Context, node: NodeProto) -> Iterator[Finding]:
    if not graph.attributes(node).get("allowzero", 0):
        return
    shape = _shape_parts(context, node.input[1])
    if -1 in shape:
        reason = "allowzero=1 together with -1 in the shape fails with E_INVALIDARG; drop allowzero."
        yield Finding("DML003-reshape-allowzero", "refused", reason)
    elif None in shape:
        reason = "allowzero=1 and a computed shape that may hold -1, which fails with E_INVALIDARG; drop allowzero."
        yield Finding("DML003-reshape-allowzero", "unknown", reason)


def _shape_parts(context: Context, name: str) -> tuple[int | None, ...]:
    """Elements of a shape value as far as constants tell; None for what is computed."""
    constant = context.view.constants.get(name)
    if constant is not None:
        return constant.values if constant.values is not None else (None,)
    node = context.producer(name)
    if node is None:
        return (None,)
    if node.op_type == "Concat":
        return tuple(part for piece in node.input for part in _shape_parts(context, piece))
    if node.op_type in ("Unsqueeze", "Squeeze", "Identity", "Cast"):
        return _shape_parts(context, node.input[0])
    return (0,) if node.op_type == "Shape" else (None,)


def _group_query_attention(context: Context, node: NodeProto) -> Iterator[Finding]:
    given = [i for i, name in enumerate(node.input) if name]
    if graph.attributes(node).get("do_rotary", 0):
        reason = "do_rotary=1 computes wrong values from position 1 on; rotate with RotaryEmbedding nodes before it."
        yield Finding("DML013-gqa-rotary", "refused", reason)
    if ignored := sorted(_IGNORED & {name for name, value in graph.attributes(node).items() if _acts(name, value)}):
        # Source: DmlOperatorGroupQueryAttention.cpp reads num_heads, kv_num_heads and scale.
        reason = f"The kernel ignores {', '.join(ignored)}: other values than the operator defines, without a message."
        yield Finding("DML018-gqa-ignored", "refused", reason)
    if 1 not in given or 2 not in given:
        reason = "Query, key and value are packed; only separate projections are known to work."
        yield Finding("DML009-packed-qkv", "unknown", reason)
    if extra := [i for i in given if i > 8]:
        reason = f"Inputs {extra} (beyond sin_cache) are newer than anything that was tried on DirectML."
        yield Finding("DML005-gqa-inputs", "unknown", reason, placement_in_doubt=True)
    if len(node.output) > 3 and node.output[3]:
        reason = "The fourth output is newer than anything that was tried on DirectML."
        yield Finding("DML005-gqa-inputs", "unknown", reason, placement_in_doubt=True)


def _acts(name: str, value: Any) -> bool:
    return bool(value != -1 if name == "local_window_size" else value)


def _matmul_nbits(context: Context, node: NodeProto) -> Iterator[Finding]:
    rule, values = "DML006-matmulnbits", graph.attributes(node)
    if any(node.input[4:6]):
        # Source: DmlOperatorMatMulNBits.cpp rejects both at kernel creation.
        yield Finding(rule, "refused", "The g_idx and bias inputs are rejected; add the bias with an Add node.")
    if (bits := values.get("bits", 4)) != 4:
        reason = f"bits={bits} was not verified; 4 was. The support query decides."
        yield Finding(rule, "unknown", reason, placement_in_doubt=True)
    block = values.get("block_size", 0)
    if block and values.get("K", 0) % block:
        reason = f"K={values['K']} is no multiple of block_size={block}; some versions' support query turns that down."
        yield Finding(rule, "unknown", reason, placement_in_doubt=True)
    if not any(node.input[3:4]):
        # Source: DmlOperatorMatMulNBits.cpp dequantises by scale alone then; the operator's definition subtracts 8.
        yield Finding(rule, "unknown", "No zero points: the kernel's source subtracts nothing; write them out as 8.")
    if "accuracy_level" in values:
        yield Finding(rule, "registered", "accuracy_level is a CPU hint; leave it out of a DirectML file.")


def _fused_attention(context: Context, node: NodeProto) -> Iterator[Finding]:
    reason = "A file with com.microsoft Attention from the fusion tool failed (E_INVALIDARG); do not rely on it."
    yield Finding("DML007-fused-attention", "unknown", reason, placement_in_doubt=True)


def _norm_outputs(context: Context, node: NodeProto) -> Iterator[Finding]:
    # Source: the Query*LayerNormalization functions; the fourth output (the sum) of the Skip forms is supported.
    if any(node.output[1:3]):
        reason = "The mean and inverse-deviation outputs are turned down by the support query."
        yield Finding("DML016-support-query", "unknown", reason, placement_in_doubt=True)


def _if(context: Context, node: NodeProto) -> Iterator[Finding]:
    yield Finding("DML010-control-flow", "registered", "If runs, but rules out graph capture.")


_PER_OP: Mapping[tuple[str, str], Callable[[Context, Any], Iterator[Finding]]] = {
    ("ai.onnx", "Reshape"): _reshape,
    ("ai.onnx", "If"): _if,
    ("ai.onnx", "LayerNormalization"): _norm_outputs,
    ("ai.onnx", "SimplifiedLayerNormalization"): _norm_outputs,
    (_MS, "SkipLayerNormalization"): _norm_outputs,
    (_MS, "SkipSimplifiedLayerNormalization"): _norm_outputs,
    (_MS, "GroupQueryAttention"): _group_query_attention,
    (_MS, "MatMulNBits"): _matmul_nbits,
    (_MS, "Attention"): _fused_attention,
}


# --- the file as a whole ---


def io_contract(view: graph.View) -> Iterator[Finding]:
    """Rule 14: the caches of GroupQueryAttention that the caller must bind in place."""
    pairs, op = shared_buffers(view), f"{_MS}::GroupQueryAttention"
    if inner := [(a, b) for a, b in pairs if not view.path and (a not in view.inputs or b not in view.outputs)]:
        reason = f"{inner[0][0]} or {inner[0][1]} is no port of the file: the caller cannot bind both to one buffer."
        yield Finding("DML014-io-contract", "refused", reason, op=op)
    if pairs:
        shown = ", ".join(f"{past} = {present}" for past, present in pairs[:4])
        shown += f" and {len(pairs) - 4} more" if len(pairs) > 4 else ""
        reason = f"Each present must be bound to the same buffer as its past, else the past reads as zeros: {shown}."
        yield Finding("DML014-io-contract", "unknown", reason, op=op)
        # Source: the same file; the length of the past is read for one new token only.
        reason = "A call with several new tokens starts from an empty cache: a prompt must be given in one call."
        yield Finding("DML019-gqa-prompt", "unknown", reason, op=op)


def shared_buffers(view: graph.View) -> list[tuple[str, str]]:
    """(past, present) of every GroupQueryAttention with a cache."""
    return [
        (past, present)
        for node in view.nodes
        if node.op_type == "GroupQueryAttention" and graph.domain_of(node) == _MS
        for past, present in zip(node.input[3:5], node.output[1:3], strict=False)
        if past and present
    ]


def of_model(model: ModelProto, folder: Path) -> Iterator[Finding]:
    """Opset, internal operators, symbolic inputs and external data of a file that lies in `folder`."""
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset > kernels.MAX_OPSET:
        reason = f"ai.onnx opset {opset}; DirectML {kernels.VERSION} registers nothing newer than {kernels.MAX_OPSET}."
        yield Finding("DML001-opset", "refused", reason, op=f"ai.onnx opset {opset}")
    graphs = list(_all_graphs(model.graph))
    internal = sorted({n.op_type for g in graphs for n in g.node if n.domain == kernels.INTERNAL_DOMAIN})
    if internal:
        reason = f"The file holds internal operators of the runtime: {', '.join(internal)}."
        yield Finding("DML011-internal-domain", "refused", reason, op=kernels.INTERNAL_DOMAIN)
    symbolic = [v.name for v in model.graph.input if not all(d.HasField("dim_value") for d in _dims(v))]
    if symbolic:
        reason = f"Symbolic dimensions in {', '.join(symbolic)}: static shapes keep more nodes on the device."
        yield Finding("DML008-dynamic-shapes", "registered", reason, op="inputs")
    for tensor in (t for g in graphs for t in g.initializer if t.external_data):
        if problem := _external_problem(tensor, folder):
            yield Finding("DML017-external-data", "refused", f"{tensor.name}: {problem}", op="external data")


def _dims(value: ValueInfoProto) -> Any:
    return value.type.tensor_type.shape.dim


def _all_graphs(main: GraphProto) -> Iterator[GraphProto]:
    yield main
    for node in main.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _all_graphs(attribute.g)


def _external_problem(tensor: TensorProto, folder: Path) -> str | None:
    entry = {e.key: e.value for e in tensor.external_data}
    location = entry.get("location", "")
    parts = PurePosixPath(location).parts + PureWindowsPath(location).parts
    if not location or ".." in parts or PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor:
        return f"location {location!r} is not a plain path below the model's folder."
    file = folder / location
    if not file.is_file():
        return f"{location} is missing."
    needed = graph.tensor_bytes(tensor)
    length = int(entry.get("length", needed))
    if length != needed:
        return f"length {length} is not the {needed} bytes of {list(tensor.dims)} (= {prod(tensor.dims)} elements)."
    end = int(entry.get("offset", 0)) + needed
    if (size := file.stat().st_size) < end:
        return f"{location} holds {size} bytes, {end} are needed."
    return None
