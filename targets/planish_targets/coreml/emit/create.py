"""Tensors that are made of numbers alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from planish_passes.program import op_name
from planish_targets.coreml.emit.emitter import Emitter, arguments, dtype_of, emits, mil_type
from planish_targets.coreml.emit.naming import Var
from planish_targets.coreml.emit.sizes import fixed, shape_of, size_of

_NUMPY: dict[str, Any] = {"fp32": np.float32, "int32": np.int32, "bool": np.bool_}


@emits("aten.arange")
def arange(e: Emitter, node: fx.Node) -> Var:
    """Numbers from start (0) up to end."""
    given, kind = arguments(node), mil_type(dtype_of(node))
    start, end, step = given.get("start") or 0, given["end"], given.get("step") or 1
    if fixed(shape_of(node)):
        return e.mb.const(val=np.arange(start, end, step).astype(_NUMPY[kind]), name=node.name)
    if kind != "int32":
        raise e.refusal(node, "a range of floating-point numbers whose length depends on the input")
    first, last, by, count = size_of(start), size_of(end), size_of(step), shape_of(node)
    if (first, by) == (0, 1) and e.sizes.is_input(last):  # the beginning of a constant: nothing is counted at run time
        numbers = np.arange(max(high for _, high in e.program.axes.values()), dtype=np.int32)
    else:
        numbers = e.mb.range_1d(**{n: e.sizes.scalar(s) for n, s in (("start", first), ("end", last), ("step", by))})
    return e.mb.slice_by_size(x=numbers, begin=[0], size=e.sizes.vector(count), name=node.name)


@emits("aten.full", "aten.zeros", "aten.ones", "aten.new_full", "aten.new_zeros", "aten.new_ones")
def full(e: Emitter, node: fx.Node) -> Var:
    """One number in every place."""
    kind, dtype, shape = op_name(node).rpartition(".")[2].removeprefix("new_"), dtype_of(node), shape_of(node)
    number = arguments(node)["fill_value"] if kind == "full" else int(kind == "ones")
    value = e.literal(number, dtype)
    if fixed(shape):
        return e.mb.const(val=np.full(shape, value, _NUMPY[mil_type(dtype)]), name=node.name)
    if mil_type(dtype) != "bool":
        return e.mb.fill(shape=e.sizes.vector(shape), value=value, name=node.name)
    return e.cast(e.mb.fill(shape=e.sizes.vector(shape), value=np.int32(number)), dtype, node.name)
