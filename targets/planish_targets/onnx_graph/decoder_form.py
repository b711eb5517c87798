"""From shared composites to the operators that ONNX Runtime's decoders are made of."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

import planish_targets.onnx_graph.decoder_ops  # noqa: F401  (registers the operators)
from planish_passes.infra import PassResult, Refusal
from planish_passes.match import is_op, shape_of
from planish_passes.program import Program, finish


@dataclass(frozen=True)
class DecoderForm:
    """`cached_attention` becomes `group_query_attention`, and x + y followed by a norm `add_rms_norm`.

    What the kernel does not have (biases, sinks, chunks, keys and values of different widths) is refused and stays.

    Args:
        rotate: rotary positions are applied inside the attention where queries and keys share their tables.
        join_norms: a sum and the norm behind it are one operator (slower than two on the CPU provider).
        packed: queries, keys and values that lie in one tensor are given as one, and so are gates.
    """

    rotate: bool = True
    join_norms: bool = False
    packed: bool = True

    def run(self, program: Program) -> PassResult:
        """See the class."""
        changed, refused = 0, []
        lengths: dict[fx.Node, tuple[fx.Node, fx.Node]] = {}
        for node in list(program.graph.nodes):
            if is_op(node, "planish.cached_attention"):
                reason = unfit(node)
                if reason is not None:
                    refused.append(Refusal.of(node, f"no GroupQueryAttention: {reason}"))
                    continue
                _group_query(program.graph, node, lengths, self)
                changed += 1
            elif (self.join_norms and is_op(node, "planish.rms_norm") and _add_norm(program.graph, node)) or (
                self.packed and is_op(node, "planish.gated") and _halves(program.graph, node)
            ):
                changed += 1
        return PassResult(finish(program), changed, tuple(refused))


def unfit(node: fx.Node) -> str | None:
    """Why a `cached_attention` has no GroupQueryAttention, None when it has one."""
    q, k, v, _, _, _, bias, sinks, _, _, _, chunk = node.args
    if bias is not None or sinks is not None or chunk:
        return "it has a bias, sinks or chunks"
    widths = {int(shape_of(n)[-1]) for n in (q, k, v)}  # type: ignore[arg-type]
    if len(widths) > 1:
        return "keys and values differ in width"
    return f"heads of {min(widths)} channels are no multiple of 8" if min(widths) % 8 else None


def _group_query(
    graph: fx.Graph, node: fx.Node, lengths: dict[fx.Node, tuple[fx.Node, fx.Node]], form: DecoderForm
) -> None:
    q, k, v, past_k, past_v, slots, _, _, scale, softcap, window, _ = node.args
    assert isinstance(slots, fx.Node)
    if slots not in lengths:
        lengths[slots] = _lengths(graph, slots)
    cos, sin, interleaved = None, None, False
    if form.rotate and is_op(q, "planish.rope") and is_op(k, "planish.rope") and _together(q, k, slots):
        (q, _, cos, sin, interleaved), k = q.args, k.args[0]  # type: ignore[union-attr]
    heads, kv_heads = (int(shape_of(n)[1]) for n in (q, k))  # type: ignore[arg-type]
    with graph.inserting_before(node):
        parted = [rows_of(graph, n) for n in (q, k, v)]
        flat = _packed(parted) if form.packed else parted
        new = graph.call_function(
            torch.ops.planish.group_query_attention.default,
            (*flat, past_k, past_v, *lengths[slots], cos, sin, scale, softcap, window, heads, kv_heads, interleaved),
        )
        out, keys, values = node.meta["val"]
        new.meta = {**node.meta, "val": (_reshaped(out, (*out.shape[:2], -1)), keys, values)}
        parts: list[Any] = [graph.call_function(operator.getitem, (new, i)) for i in range(3)]
        for part, value in zip(parts, new.meta["val"], strict=True):
            part.meta = {"val": value, "planish_module": node.meta.get("planish_module", "")}
        batch, length = (graph.call_function(torch.ops.aten.sym_size.int, (parts[0], i)) for i in (0, 1))
        for size, symbol in zip((batch, length), out.shape[:2], strict=True):
            size.meta = {"val": symbol}
        shaped = graph.call_function(
            torch.ops.aten.reshape.default, (parts[0], [batch, length, int(out.shape[2]), int(out.shape[3])])
        )
        shaped.meta = {"val": out, "planish_module": node.meta.get("planish_module", "")}
    for old in list(node.users):
        old.replace_all_uses_with((shaped, *parts[1:])[old.args[1]])  # type: ignore[index]
        graph.erase_node(old)
    graph.erase_node(node)


def _together(q: fx.Node, k: fx.Node, slots: fx.Node) -> bool:
    fits = int(shape_of(q.args[2])[1]) % 8 == 0  # type: ignore[arg-type]  # the kernel's condition on its tables
    return fits and q.args[1] is slots and q.args[1:] == k.args[1:]


def _lengths(graph: fx.Graph, slots: fx.Node) -> tuple[fx.Node, fx.Node]:
    fake = slots.meta["val"]
    with graph.inserting_after(slots):
        pair = graph.call_function(torch.ops.planish.cache_lengths.default, (slots,))
    pair.meta = {"val": (fake.new_empty((fake.shape[0],), dtype=torch.int32), fake.new_empty((1,), dtype=torch.int32))}
    with graph.inserting_after(pair):
        second = graph.call_function(operator.getitem, (pair, 1))
        first = graph.call_function(operator.getitem, (pair, 0))
    first.meta, second.meta = {"val": pair.meta["val"][0]}, {"val": pair.meta["val"][1]}
    return first, second


def rows_of(graph: fx.Graph, node: Any) -> fx.Node:
    """[B, H, Q, D] to [B, Q, H * D]; when it was made from that, the original."""
    heads = node
    if is_op(node, "aten.transpose") and {a % 4 for a in node.args[1:]} == {1, 2}:
        heads = node.args[0]
    else:
        heads = graph.call_function(torch.ops.aten.transpose.int, (node, 1, 2))
        heads.meta = {**node.meta, "val": _transposed(node.meta["val"])}
    value = heads.meta["val"]
    source = heads.args[0] if is_op(heads, "aten.reshape") else None
    width = int(value.shape[2]) * int(value.shape[3])
    if source is not None and len(shape_of(source)) == 3 and shape_of(source)[2] == width:
        return source  # type: ignore[return-value]
    flat = graph.call_function(torch.ops.aten.flatten.using_ints, (heads, 2, 3))
    flat.meta = {**node.meta, "val": _reshaped(value, (*value.shape[:2], width))}
    return flat


def _packed(flat: list[fx.Node]) -> list[fx.Node | None]:
    """Queries, keys and values that are the three parts of one tensor, in this order, stay in it."""
    source, at = flat[0].args[0], 0
    for part in flat:
        width = int(shape_of(part)[2])
        if not is_op(part, "aten.slice") or part.args[0] is not source or tuple(part.args[1:4]) not in _cuts(at, width):
            return list(flat)
        at += width
    assert isinstance(source, fx.Node)
    return [source, None, None] if at == int(shape_of(source)[2]) else list(flat)


def _cuts(at: int, width: int) -> tuple[tuple[int, int, int], ...]:
    return ((-1, at, at + width), (2, at, at + width))


def _halves(graph: fx.Graph, gated: fx.Node) -> bool:
    """Gate and up that are the halves of one tensor."""
    gate, up, activation = gated.args
    if not (is_op(gate, "aten.slice") and is_op(up, "aten.slice") and gate.args[0] is up.args[0]):  # type: ignore[union-attr]
        return False
    source = gate.args[0]  # type: ignore[union-attr]
    assert isinstance(source, fx.Node)
    whole, last = int(shape_of(source)[-1]), len(shape_of(source)) - 1
    low, high = ((axis, 0, whole // 2), (axis, whole // 2, whole)) if (axis := gate.args[1]) in (-1, last) else ((), ())  # type: ignore[union-attr]
    order = (tuple(gate.args[1:4]), tuple(up.args[1:4]))  # type: ignore[union-attr]
    if order not in ((low, high), (high, low)):
        return False
    with graph.inserting_before(gated):
        new = graph.call_function(torch.ops.planish.gated_halves.default, (source, activation, order == (high, low)))
    new.meta = dict(gated.meta)
    gated.replace_all_uses_with(new)
    graph.erase_node(gated)
    return True


def _transposed(value: Any) -> Any:
    with value.fake_mode:
        return value.transpose(1, 2)


def _reshaped(value: Any, shape: tuple[Any, ...]) -> Any:
    last = shape[-1] if shape[-1] != -1 else int(value.shape[-1]) * int(value.shape[-2])
    return value.new_empty((*shape[:-1], last))


def _add_norm(graph: fx.Graph, norm: fx.Node) -> bool:
    add, weight, eps = norm.args
    if not is_op(add, "aten.add") or add.kwargs or weight is None:  # type: ignore[union-attr]
        return False
    assert isinstance(add, fx.Node)
    x, skip = add.args[:2]
    if not (isinstance(x, fx.Node) and isinstance(skip, fx.Node)):
        return False
    shapes = [[str(s) for s in shape_of(n)] for n in (x, skip, add)]
    if shapes[0] != shapes[1] or len(shapes[2]) != 3 or any(is_op(u, "planish.add_rms_norm") for u in add.users):
        return False
    with graph.inserting_after(add):
        joined = graph.call_function(torch.ops.planish.add_rms_norm.default, (x, skip, weight, eps))
    with graph.inserting_after(joined):
        total = graph.call_function(operator.getitem, (joined, 1))
        normed = graph.call_function(operator.getitem, (joined, 0))
    joined.meta = {**norm.meta, "val": (norm.meta["val"], add.meta["val"])}
    normed.meta, total.meta = dict(norm.meta), dict(add.meta)
    norm.replace_all_uses_with(normed)
    add.replace_all_uses_with(total)
    graph.erase_node(norm)
    graph.erase_node(add)
    return True
