"""Static verdict per node of an ONNX file meant for the DirectML execution provider, without Windows.

The evidence is structural: the kernel table of the shipped library, ONNX Runtime's placement algorithm, and defects
that were seen when whole graphs ran on the provider. What the device itself decides (64-bit integer support,
metacommands) is not covered, and the file is judged as written: the fusions and the constant folding that ONNX Runtime
does while loading are not replayed. A rule id on a `registered` check is advice; on a `refused` one it names what was
broken.

| rule | refused | unknown | registered (advice) |
|---|---|---|---|
| DML001-opset | ai.onnx above 21; a node revised after 21 | | |
| DML002-no-kernel / -version / -type | no such kernel, other version, other type | function op; type not inferred | |
| DML002-cpu-input | | host input computed on the device or fed by the caller | |
| DML003-reshape-allowzero | allowzero=1 with -1 | allowzero=1, shape not readable | |
| DML004-gather-block-quantized | always | | |
| DML005-gqa-inputs | | inputs or outputs beyond the verified ones | |
| DML006-matmulnbits | g_idx or bias input | bits not 4; K no multiple of block; no zero points | accuracy_level |
| DML007-fused-attention | | com.microsoft Attention | |
| DML008-dynamic-shapes | | | symbolic graph inputs |
| DML009-packed-qkv | | GroupQueryAttention without key and value | |
| DML010-control-flow | Loop, Scan, and If revised after 19 | | If |
| DML011-internal-domain | com.microsoft.dml | | |
| DML013-gqa-rotary | do_rotary=1 | | |
| DML014-io-contract | a cache of GroupQueryAttention is no port | GroupQueryAttention with a cache | |
| DML015-fp16-norm | | norm computed in float16 | |
| DML016-support-query | | outputs that the query is known to turn down | |
| DML017-external-data | file missing, too short, or outside the folder | | |
| DML018-gqa-ignored | attributes that GroupQueryAttention's kernel does not read | | |
| DML019-gqa-prompt | | GroupQueryAttention with a cache | |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from planish_targets.directml import findings, graph, kernels, placement
from planish_targets.directml.findings import MODEL, Finding, Status

Provider = Literal["DmlExecutionProvider", "CPUExecutionProvider"]
DML: Provider = "DmlExecutionProvider"
CPU: Provider = "CPUExecutionProvider"

_SEVERITY: Mapping[Status, int] = {"refused": 2, "unknown": 1, "registered": 0}


@dataclass(frozen=True)
class NodeCheck:
    """The verdict on one node, or on the file when `node` is `<model>`.

    Args:
        node: node name; nodes of a body carry `<node>.<attribute>/` in front.
        op: `domain::op_type`, or `op_type` alone for ai.onnx.
        provider: where the node runs. A placement that is in doubt counts as CPU.
        status: `registered` = a kernel matches and nothing speaks against it (or the node is meant for the CPU);
            `refused` = it fails, computes wrong values or leaves the device by a proven rule;
            `unknown` = not decidable.
        rule: id of the weightiest rule that spoke, None when none did.
        reason: one or more sentences, the weightiest first.
        module: path of the source module, None when the file does not record it.
        weight_bytes: bytes of the initializers that live with this node; a shared one is counted once.
    """

    node: str
    op: str
    provider: Provider
    status: Status
    rule: str | None
    reason: str
    module: str | None = None
    weight_bytes: int = 0


@dataclass(frozen=True)
class Summary:
    """Counts over the nodes of a file (`<model>` checks apart).

    Args:
        nodes: number of nodes, bodies included, Constant nodes not.
        on_dml: nodes placed on DirectML.
        on_cpu: nodes placed on the CPU.
        refused: nodes and model findings that are refused.
        unknown: nodes and model findings that cannot be decided.
        share_nodes: `on_dml / nodes`, 1.0 for an empty file.
        share_bytes: share of initializer bytes used by DirectML nodes, 1.0 when there are none.
        by_rule: rule id -> number of checks that carry it, advice included.
    """

    nodes: int
    on_dml: int
    on_cpu: int
    refused: int
    unknown: int
    share_nodes: float
    share_bytes: float
    by_rule: Mapping[str, int]


def check(model: Path) -> list[NodeCheck]:
    """Place every node of an ONNX file and check it against the rules above. External data is not read.

    Returns:
        Model findings first, then one check per node in file order, bodies after the graph that holds them.

    Raises:
        PlanishError: the file does not exist or is no ONNX file.
    """
    proto = graph.load(model)
    found = [_model_check(f) for f in findings.of_model(proto, model.parent)]
    views = graph.views(proto, model.parent)
    contract = [f for view in views for f in findings.io_contract(view)]
    per_view = [_check_view(view) for view in views]
    sizes = _weight_bytes(views, per_view)
    nodes = [replace(c, weight_bytes=sizes[v, i]) for v, checks in enumerate(per_view) for i, c in enumerate(checks)]
    return [*found, *(_model_check(f) for f in contract), *nodes]


def shared_buffers(model: Path) -> tuple[tuple[str, str], ...]:
    """(past, present) ports that a caller must bind to one buffer each.

    Raises:
        PlanishError: as `check`.
    """
    views = graph.views(graph.load(model), model.parent)
    return tuple(pair for view in views for pair in findings.shared_buffers(view))


def summary(checks: Sequence[NodeCheck]) -> Summary:
    """Counts and shares of a list that `check` returned."""
    nodes = [c for c in checks if c.node != MODEL]
    on_dml = [c for c in nodes if c.provider == DML]
    total = sum(c.weight_bytes for c in nodes)
    return Summary(
        nodes=len(nodes),
        on_dml=len(on_dml),
        on_cpu=len(nodes) - len(on_dml),
        refused=sum(c.status == "refused" for c in checks),
        unknown=sum(c.status == "unknown" for c in checks),
        share_nodes=len(on_dml) / len(nodes) if nodes else 1.0,
        share_bytes=sum(c.weight_bytes for c in on_dml) / total if total else 1.0,
        by_rule=dict(sorted(Counter(c.rule for c in checks if c.rule).items())),
    )


def _model_check(finding: Finding) -> NodeCheck:
    return NodeCheck(MODEL, finding.op, DML, finding.status, finding.rule, finding.reason)


def _check_view(view: graph.View) -> list[NodeCheck]:
    matches = [findings.match_kernel(view, node) for node in view.nodes]
    matched = {i: match for i, match in enumerate(matches) if isinstance(match, kernels.Kernel)}
    region, on_cpu = placement.shape_region(view, matched)
    context = findings.Context(view, on_cpu | placement.folded(view), view.producers())
    return [_verdict(context, i, match, i in region) for i, match in enumerate(matches)]


def _verdict(context: findings.Context, index: int, match: kernels.Kernel | Finding, in_region: bool) -> NodeCheck:
    node = context.view.nodes[index]
    name, op, module = context.view.names[index], findings.op_name(node), graph.module_of(node)
    if isinstance(match, Finding):
        return NodeCheck(name, op, CPU, match.status, match.rule, match.reason, module)
    if in_region:
        reason = "shape computation: ONNX Runtime runs it on the CPU by design."
        return NodeCheck(name, op, CPU, "registered", None, reason, module)
    spoken = sorted(findings.of_node(context, node, match), key=lambda f: -_SEVERITY[f.status])
    if not spoken:
        return NodeCheck(name, op, DML, "registered", None, _match_reason(match), module)
    worst = spoken[0]
    provider = CPU if any(f.placement_in_doubt for f in spoken) else DML
    return NodeCheck(name, op, provider, worst.status, worst.rule, " ".join(f.reason for f in spoken), module)


def _match_reason(kernel: kernels.Kernel) -> str:
    query = " It has a support query; nothing in this node gives reason to doubt." if kernel.support_query else ""
    return f"Kernel {kernel.op} since version {kernel.since_version} ({kernel.source}).{query}"


def _weight_bytes(views: Sequence[graph.View], checks: Sequence[Sequence[NodeCheck]]) -> Mapping[tuple[int, int], int]:
    """(view, node) -> bytes of the constants that live with it: the first user on DirectML, else the first user."""
    users: dict[tuple[str, str], tuple[int, int]] = {}
    sizes: dict[tuple[str, str], int] = {}
    for v, view in enumerate(views):
        for i, node in enumerate(view.nodes):
            for name in node.input:
                if name not in view.constants:
                    continue
                key = (_owner(views, view, name), name)
                sizes[key] = view.constants[name].nbytes
                first = users.setdefault(key, (v, i))
                if checks[first[0]][first[1]].provider == CPU and checks[v][i].provider == DML:
                    users[key] = (v, i)
    total: Counter[tuple[int, int]] = Counter()
    for key, user in users.items():
        total[user] += sizes[key]
    return total


def _owner(views: Sequence[graph.View], view: graph.View, name: str) -> str:
    """Path of the innermost graph around `view` that defines the constant `name`."""
    around = [v.path for v in views if view.path.startswith(v.path) and name in v.owned]
    return max(around, key=len)
