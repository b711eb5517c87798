"""Operators that only move elements. Every shape is known, so views of all kinds are one MIL `reshape`."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from planish_passes.program import op_name
from planish_targets.coreml.emit.emitter import OPS, Emitter, arguments, dtype_of, emits
from planish_targets.coreml.emit.naming import Var
from planish_targets.coreml.emit.sizes import Size, fixed, shape_of, size_of

_VIEWS = ("reshape", "view", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze")


def _source(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


@emits(*(f"aten.{name}" for name in _VIEWS))
def view(e: Emitter, node: fx.Node) -> Var:
    """Same elements, other shape."""
    x, shape = e.value(_source(node)), shape_of(node)
    return x if tuple(x.shape) == shape else e.sizes.reshape(x, shape, name=node.name)


@emits("aten.transpose", "aten.t", "aten.permute")
def transpose(e: Emitter, node: fx.Node) -> Var:
    """Another order of axes."""
    rank = len(shape_of(node))
    order = list(range(rank))
    if op_name(node) == "aten.permute":
        order = [int(d) % rank for d in arguments(node)["dims"]]
    elif rank > 1:
        a, b = (0, 1) if op_name(node) == "aten.t" else (int(d) % rank for d in node.args[1:3])  # type: ignore[arg-type]
        order[a], order[b] = order[b], order[a]
    return e.mb.transpose(x=e.value(_source(node)), perm=order, name=node.name)


@emits("aten.expand", "aten.repeat")
def expand(e: Emitter, node: fx.Node) -> Var:
    """Repeat elements along axes."""
    x, shape = e.value(_source(node)), shape_of(node)
    if op_name(node) == "aten.repeat":
        padded = (1,) * (len(shape) - len(x.shape)) + tuple(x.shape)
        x = x if padded == tuple(x.shape) else e.sizes.reshape(x, padded)
        reps = e.sizes.vector([size_of(r) for r in arguments(node)["repeats"]])
        return e.mb.tile(x=x, reps=reps, name=node.name)
    return e.broadcast(x, shape, node.name)


@emits("aten.slice")
def slice_(e: Emitter, node: fx.Node) -> Var:
    """Every step-th element of one axis."""
    given, size = arguments(node), shape_of(_source(node))
    axis = int(given["dim"]) % len(size)
    start, stop = (None if given[end] is None else size_of(given[end]) for end in ("start", "end"))
    if not fixed([size[axis], start or 0, stop or 0]):
        return _slice_by_size(e, node, axis, start or 0, int(given["step"]))
    start, stop, _ = slice(start, stop).indices(size[axis])
    begin, end, stride = [0] * len(size), [0] * len(size), [1] * len(size)
    begin[axis], end[axis], stride[axis] = start, stop, int(given["step"])
    others = [i != axis for i in range(len(size))]
    return e.mb.slice_by_index(
        x=e.value(_source(node)), begin=begin, end=end, stride=stride, end_mask=others, name=node.name
    )


def _slice_by_size(e: Emitter, node: fx.Node, axis: int, start: Size, step: int) -> Var:
    """MIL infers the shape of a slice from sizes, and not from ends, when they are known only at run time."""
    if step != 1:
        raise e.refusal(node, "every second element of an axis whose size depends on the input")
    size = shape_of(_source(node))[axis]
    begin, sizes = [0] * len(shape_of(node)), [-1] * len(shape_of(node))
    begin[axis] = size + start if isinstance(start, int) and start < 0 else start
    sizes[axis] = shape_of(node)[axis]
    x, first, count = e.value(_source(node)), e.sizes.vector(begin), e.sizes.vector(sizes)
    return e.mb.slice_by_size(x=x, begin=first, size=count, name=node.name)


@emits("aten.select")
def select(e: Emitter, node: fx.Node) -> Var:
    """One index of one axis; the axis goes."""
    given, size = arguments(node), shape_of(_source(node))
    axis = int(given["dim"]) % len(size)
    at = size_of(given["index"])
    begin: list[Size] = [0] * len(size)
    mask = [i == axis for i in range(len(size))]
    begin[axis] = at % size[axis] if fixed([at, size[axis]]) else at
    x = e.value(_source(node))
    return e.mb.slice_by_index(
        x=x,
        begin=e.sizes.vector(begin),
        end=[0] * len(size),
        end_mask=[not m for m in mask],
        squeeze_mask=mask,
        name=node.name,
    )


@emits("aten.cat", "aten.stack")
def cat(e: Emitter, node: fx.Node) -> Var:
    """Join along an axis, old or new."""
    given, dtype = arguments(node), dtype_of(node)
    parts = [e.operand(t, dtype) for t in given["tensors"]]
    join = e.mb.concat if op_name(node) == "aten.cat" else e.mb.stack
    return join(values=parts, axis=int(given["dim"]), name=node.name)


@emits("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.unbind")
def split(e: Emitter, node: fx.Node) -> tuple[Var, ...]:
    """Cut along an axis; the results' shapes say where."""
    results, rank = node.meta["val"], len(shape_of(_source(node)))
    axis = int(arguments(node)["dim"]) % rank
    removed = op_name(node) == "aten.unbind"
    sizes = [1 if removed else size_of(r.shape[axis]) for r in results]
    if not fixed(sizes):
        raise e.refusal(node, "parts whose sizes depend on the length of the input")
    x = e.value(_source(node))
    parts = [x] if len(sizes) == 1 else e.mb.split(x=x, split_sizes=sizes, axis=axis, name=node.name)
    return tuple(e.mb.squeeze(x=p, axes=[axis]) for p in parts) if removed else tuple(parts)


def getitem(e: Emitter, node: fx.Node) -> Var:
    """One result of an operator that has several."""
    several: Any = e.value(_source(node))
    at = node.args[1]
    assert isinstance(at, int)
    return several[at]


OPS[operator.getitem.__name__] = getitem


@emits("aten.pad", "aten.constant_pad_nd")
def pad(e: Emitter, node: fx.Node) -> Var:
    """Padding of the last axes, with a number or by reflection or repetition."""
    given = arguments(node)
    amounts = [int(p) for p in given["pad"]]
    x = e.value(_source(node))
    if not any(amounts):
        return x
    if min(amounts) < 0:
        raise e.refusal(node, "negative padding")
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "replicate"}
    mode = modes.get(given.get("mode", "constant"))
    if mode is None:
        raise e.refusal(node, f"padding mode {given['mode']}")
    pairs = [amounts[i : i + 2] for i in range(0, len(amounts), 2)]
    flat = [0, 0] * (len(x.shape) - len(pairs)) + [p for pair in reversed(pairs) for p in pair]
    fill = e.literal(given.get("value") or 0, dtype_of(node))
    return e.mb.pad(x=x, pad=flat, mode=mode, constant_val=fill, name=node.name)
