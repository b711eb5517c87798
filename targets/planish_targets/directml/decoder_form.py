"""Decoders in the form that DirectML's kernels compute right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from planish_passes.decoder_ops import rope
from planish_passes.expand import Expand
from planish_passes.infra import PassResult, Refusal
from planish_passes.match import is_op, shape_of
from planish_passes.ops import BODIES, composite
from planish_passes.program import Program, finish, module_path
from planish_passes.ranges import KEY
from planish_targets.onnx_graph.decoder_form import rows_of, unfit

_CACHED = "planish.cached_attention"


@composite(
    "rotary_rows(Tensor x, Tensor positions, Tensor cos, Tensor sin, int heads, bool interleaved) -> Tensor",
    lambda x, *_: x.new_empty(x.shape),
)
def rotary_rows(x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, heads: int, interleaved: bool) -> Tensor:
    """`decoder_ops.rope` of [B, Q, heads * D], the layout of com.microsoft::RotaryEmbedding."""
    turned = rope(x.unflatten(-1, (heads, -1)).transpose(1, 2), positions, cos, sin, interleaved)
    return turned.transpose(1, 2).flatten(-2)


@dataclass(frozen=True)
class PlainAttention:
    """Attention that the GroupQueryAttention kernel would compute wrong, written out; for all layers or for none.

    DirectML's kernel reads neither `softcap` nor `local_window_size` (source: DmlOperatorGroupQueryAttention.cpp), and
    takes no bias and no sinks. A window that is never reached is dropped instead. All or none, because the kernel
    writes into the caller's buffers and written-out attention returns new ones: one contract for the whole cache.
    """

    def run(self, program: Program) -> PassResult:
        """See the class."""
        longest = program.axes.get("past", (0, 0))[1]
        cached = [n for n in program.graph.nodes if is_op(n, _CACHED)]
        for node in cached:
            if node.args[10] and longest and int(node.args[10]) >= longest:  # type: ignore[arg-type]
                node.update_arg(10, 0)
        refused = tuple(Refusal.of(n, f"no GroupQueryAttention: {r}") for n in cached if (r := _reason(n)))
        if not refused:
            return PassResult(finish(program), 0)
        names = frozenset(str(op).removesuffix(".default").replace("::", ".") for op in BODIES)
        expanded = Expand(names - {_CACHED}).run(program)
        return PassResult(expanded.program, expanded.changed, refused)


def _reason(node: fx.Node) -> str | None:
    softcap, window = node.args[9:11]
    if softcap:
        return "DirectML's kernel ignores the soft cap"
    return "DirectML's kernel ignores the sliding window" if window else unfit(node)


@dataclass(frozen=True)
class RotaryRows:
    """`rope` of [B, H, Q, D] becomes `rotary_rows` of [B, Q, H * D], the older and better known form of the kernel."""

    def run(self, program: Program) -> PassResult:
        """See the class."""
        changed, graph = 0, program.graph
        for node in list(graph.nodes):
            if not is_op(node, "planish.rope"):
                continue
            x, positions, cos, sin, interleaved = node.args
            _, heads, _, width = shape_of(x)  # type: ignore[arg-type]
            with graph.inserting_before(node):
                flat = rows_of(graph, x)
                turned = _call(
                    graph,
                    node,
                    torch.ops.planish.rotary_rows.default,
                    (flat, positions, cos, sin, int(heads), interleaved),
                    flat.meta["val"],
                )
                sizes = [_size(graph, flat, i) for i in (0, 1)]
                value = node.meta["val"]
                with value.fake_mode:
                    split = value.transpose(1, 2)
                apart = _call(
                    graph, node, torch.ops.aten.reshape.default, (turned, [*sizes, int(heads), int(width)]), split
                )
                back = _call(graph, node, torch.ops.aten.transpose.int, (apart, 1, 2), value)
            node.replace_all_uses_with(back)
            graph.erase_node(node)
            changed += 1
        return PassResult(finish(program), changed)


def _call(graph: fx.Graph, old: fx.Node, target: Any, arguments: tuple[Any, ...], value: Tensor) -> fx.Node:
    node = graph.call_function(target, arguments)
    node.meta = {"val": value, "planish_module": module_path(old)}
    if KEY in old.meta:
        node.meta[KEY] = old.meta[KEY]
    return node


def _size(graph: fx.Graph, node: fx.Node, axis: int) -> fx.Node:
    size = graph.call_function(torch.ops.aten.sym_size.int, (node, axis))
    size.meta = {"val": shape_of(node)[axis]}
    return size
