"""Lookups by index tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from planish_targets.coreml.emit.emitter import Emitter, arguments, dtype_of, emits, mil_type
from planish_targets.coreml.emit.naming import Var
from planish_targets.coreml.emit.sizes import Size, broadcast_shape, shape_of


@emits("aten.embedding")
def embedding(e: Emitter, node: fx.Node) -> Var:
    """Rows of a table. Ids come from a tokenizer: not negative."""
    given = arguments(node)
    return look_up(e, e.value(given["weight"]), given["indices"], node.name)


@emits("planish.embedding_q")
def embedding_q(e: Emitter, node: fx.Node) -> Var:
    """Rows of a quantised table: gather from its decompressing operation, so that the file holds integers only."""
    from planish_targets.coreml.emit.network import quantized_weight

    given = arguments(node)
    e.note(
        "quantised embedding tables are compressed constants behind a gather; whether Core ML expands them in memory "
        "when it loads the model can only be seen on a device"
    )
    return look_up(e, quantized_weight(e, given), given["ids"], node.name)


def look_up(e: Emitter, table: Var, ids: fx.Node, name: str) -> Var:
    """Rows of a table; of constant ids one behind the other a slice, where gathers are to be avoided."""
    indices = e.value(ids)
    known = None if indices.val is None else indices.val.reshape(-1)
    if not e.ane or known is None or not np.array_equal(known, known[0] + np.arange(len(known))):
        return e.mb.gather(x=table, indices=indices, axis=0, name=name)
    rows = e.mb.slice_by_size(x=table, begin=[int(known[0]), 0], size=[len(known), -1])
    return e.mb.reshape(x=rows, shape=[*indices.shape, table.shape[1]], name=name)


@emits("aten.index_select")
def index_select(e: Emitter, node: fx.Node) -> Var:
    """Slices of one axis."""
    given = arguments(node)
    return _gather(e, e.value(given["self"]), _positions(e, given["index"], None), int(given["dim"]), node)


@emits("aten.gather")
def gather(e: Emitter, node: fx.Node) -> Var:
    """Elements along an axis, one index for each result."""
    given = arguments(node)
    shape, picked = shape_of(given["self"]), shape_of(given["index"])
    axis = int(given["dim"]) % len(shape)
    if any(p != s for i, (p, s) in enumerate(zip(picked, shape, strict=True)) if i != axis):
        raise e.refusal(node, "the index covers only part of the other axes")
    x = e.value(given["self"])
    return e.mb.gather_along_axis(x=x, indices=e.value(given["index"]), axis=axis, name=node.name)


@emits("aten.index")
def index(e: Emitter, node: fx.Node) -> Var:
    """x[i], x[:, i] and x[i, j, ...] with integer tensors."""
    given = arguments(node)
    shape = shape_of(given["self"])
    used = [(axis, i) for axis, i in enumerate(given["indices"]) if i is not None]
    if any(dtype_of(i) == torch.bool for _, i in used):
        raise e.refusal(node, "a bool index gives a number of results that depends on the data")
    x = e.value(given["self"])
    if len(used) == 1:
        axis, positions = used[0]
        return _gather(e, x, _positions(e, positions, shape[axis]), axis, node)
    if [axis for axis, _ in used] != list(range(len(used))):
        raise e.refusal(node, "several index tensors that do not start at the first axis")
    common = broadcast_shape(shape_of(i) for _, i in used)
    columns = [e.broadcast(_positions(e, i, shape[axis]), common) for axis, i in used]
    points = e.mb.stack(values=columns, axis=-1)
    return _as_numbers(e, x, node, lambda v, **kw: e.mb.gather_nd(x=v, indices=points, **kw))


def _gather(e: Emitter, x: Var, positions: Var, axis: int, node: fx.Node) -> Var:
    return _as_numbers(e, x, node, lambda v, **kw: e.mb.gather(x=v, indices=positions, axis=axis, **kw))


def _as_numbers(e: Emitter, x: Var, node: fx.Node, build: Any) -> Var:
    # MIL gathers numbers only
    if mil_type(dtype_of(node)) != "bool":
        return build(x, name=node.name)
    return e.cast(build(e.cast(x, torch.int32)), torch.bool, node.name)


def _positions(e: Emitter, indices: fx.Node, size: Size | None) -> Var:
    """Index values, counted from the start: MIL does not know negative ones."""
    var = e.value(indices)
    if size is None:
        return var
    if var.val is not None and isinstance(size, int):
        return e.mb.const(val=np.where(var.val < 0, var.val + size, var.val).astype(np.int32))
    wrapped = e.mb.add(x=var, y=e.sizes.scalar(size))
    return e.mb.select(cond=e.mb.greater_equal(x=var, y=np.int32(0)), a=var, b=wrapped)
