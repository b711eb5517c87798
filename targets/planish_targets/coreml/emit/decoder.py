"""What decoders add: caches that are states, causal masks, rotary positions, root-mean-square norms, gated products."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from planish_passes.ranges import range_of
from planish_targets.coreml.emit.emitter import Emitter, arguments, emits
from planish_targets.coreml.emit.naming import Var
from planish_targets.coreml.emit.network import attend, stored_epsilon
from planish_targets.coreml.emit.sizes import shape_of

# Squares and their means stay well inside fp16 between these bounds: 128^2 is a quarter of its largest number, and
# means of x^2 from 2^-8 on leave 64 times the smallest normal number to rows that are smaller than what was seen.
_LARGEST_HALF_NORM, _SMALLEST_HALF_MEAN = 128.0, 2.0**-8


@emits("planish.cache_write")
def cache_write(e: Emitter, node: fx.Node) -> Var:
    """New keys or values into a state; returns all of them."""
    given = arguments(node)
    return _write(e, node, node, given["cache"], given["new"], given["slots"], node.name)


@emits("planish.resident_attention")
def resident_attention(e: Emitter, node: fx.Node) -> tuple[Var | None, ...]:
    """New keys and values into their states, and attention over what is in them then."""
    given = arguments(node)
    results = {user.args[1]: user for user in node.users}
    keys = _write(e, node, results.get(1), given["cache_k"], given["k"], given["slots"])
    values = _write(e, node, results.get(2), given["cache_v"], given["v"], given["slots"])
    keep = (
        e.masks.get((max(given["window"], 0), max(given["chunk"], 0))) if given["slots"].op == "placeholder" else None
    )
    if keep is None:
        keep = mask(e, given["slots"], shape_of(given["cache_k"])[2], given["window"], given["chunk"])
    return attend(e, given, keys, values, keep, node.name), keys, values


def _write(
    e: Emitter, node: fx.Node, result: fx.Node | None, cache: fx.Node, new: fx.Node, slots: fx.Node, name: str = ""
) -> Var:
    """One slice that begins at the first slot: a state is updated in place, in fp16."""
    state = e.states.get(cache.name)
    if state is None or result is None or state.output != result.name:
        raise e.refusal(node, "what it makes is not the next call's state")
    begin, end = _span(e, slots)
    half, axes = e.mb.cast(x=e.value(new), dtype="fp16"), [True, True, False, True]
    before = e.mb.read_state(input=state.var)
    after = e.mb.slice_update(x=before, update=half, begin=begin, end=end, begin_mask=axes, end_mask=axes)
    state.written = True
    return e.cast(e.mb.coreml_update_state(state=state.var, value=after), torch.float32, name or None)


def _span(e: Emitter, slots: fx.Node) -> tuple[Var, Var]:
    """begin and end, int32 [4], of the slice of a cache [1, H, C, D] that new tokens take."""
    count = shape_of(slots)[1]

    def corner(offset: int) -> Var:
        flat = e.mb.reshape(x=e.value(slots), shape=[count])
        first = flat if count == 1 else e.mb.slice_by_size(x=flat, begin=[0], size=[1])
        at = first if not offset else e.mb.add(x=first, y=np.int32(offset))
        zeros = np.zeros(2, np.int32), np.zeros(1, np.int32)
        return e.mb.concat(values=[zeros[0], at, zeros[1]], axis=0)

    return e.once(("begin", slots), lambda: corner(0)), e.once(("end", slots), lambda: corner(count))


@emits("planish.causal_mask")
def causal_mask(e: Emitter, node: fx.Node) -> Var:
    """See `mask`."""
    given = arguments(node)
    return mask(e, given["slots"], int(given["length"]), given["window"], given["chunk"])


def mask(e: Emitter, slots: fx.Node, length: int, window: int, chunk: int) -> Var:
    """bool [1, 1, Q, C], as of `planish_passes.decoder_ops.causal_mask`; layers with the same window share one."""
    return e.once(("mask", slots, length, window, chunk), lambda: _mask(e, slots, length, window, chunk))


def _mask(e: Emitter, slots: fx.Node, length: int, window: int, chunk: int) -> Var:
    batch, count = shape_of(slots)
    column = np.arange(length, dtype=np.int32).reshape(1, 1, 1, length)
    row = e.mb.reshape(x=e.value(slots), shape=[batch, 1, count, 1])
    keep = e.mb.greater_equal(x=row, y=column)
    if window > 0:
        keep = e.mb.logical_and(x=keep, y=e.mb.less(x=row, y=column + np.int32(window)))
    if chunk > 0:
        own = e.mb.equal(x=e.mb.floor_div(x=row, y=np.int32(chunk)), y=column // np.int32(chunk))
        keep = e.mb.logical_and(x=keep, y=own)
    return keep


@emits("planish.rope")
def rope(e: Emitter, node: fx.Node) -> Var:
    """Pairs turned by the angles of their token; all layers share the looked-up rows."""
    given = arguments(node)
    x, half = e.value(given["x"]), shape_of(given["cos"])[1]
    size = list(x.shape)
    turned = x if size[-1] == 2 * half else e.mb.slice_by_size(x=x, begin=[0] * 4, size=[-1, -1, -1, 2 * half])
    turned = (_neighbours if given["interleaved"] else _halves)(e, turned, given)
    if size[-1] == 2 * half:
        return e.mb.identity(x=turned, name=node.name)
    rest = e.mb.slice_by_size(x=x, begin=[0, 0, 0, 2 * half], size=[-1] * 4)
    return e.mb.concat(values=[turned, rest], axis=-1, name=node.name)


def _halves(e: Emitter, x: Var, given: dict[str, Any]) -> Var:
    """(a, b) * (cos, cos) + (b, a) * (-sin, sin)."""
    cos, sin = _rows(e, given, "cos"), _rows(e, given, "sin")
    key = (given["positions"], given["cos"], given["sin"])
    twice = e.once(("cos", *key), lambda: e.mb.concat(values=[cos, cos], axis=-1))
    signed = e.once(("sin", *key), lambda: e.mb.concat(values=[e.mb.mul(x=sin, y=np.float32(-1)), sin], axis=-1))
    a, b = e.mb.split(x=x, num_splits=2, axis=-1)
    swapped = e.mb.concat(values=[b, a], axis=-1)
    return e.mb.add(x=e.mb.mul(x=x, y=twice), y=e.mb.mul(x=swapped, y=signed))


def _neighbours(e: Emitter, x: Var, given: dict[str, Any]) -> Var:
    cos, sin = _rows(e, given, "cos"), _rows(e, given, "sin")
    size = list(x.shape)
    a, b = (
        e.mb.slice_by_index(x=x, begin=[0, 0, 0, first], end=[0] * 4, stride=[1, 1, 1, 2], end_mask=[True] * 4)
        for first in (0, 1)
    )
    real = e.mb.sub(x=e.mb.mul(x=a, y=cos), y=e.mb.mul(x=b, y=sin))
    imaginary = e.mb.add(x=e.mb.mul(x=b, y=cos), y=e.mb.mul(x=a, y=sin))
    return e.sizes.reshape(e.mb.stack(values=[real, imaginary], axis=-1), size)


def _rows(e: Emitter, given: dict[str, Any], name: str) -> Var:
    """Rows of a table for each token: [B, 1, Q, R / 2]."""
    positions, table = given["positions"], given[name]
    batch, count = shape_of(positions)

    def look_up() -> Var:
        if e.ane and batch == 1 and positions.op == "placeholder":  # slots, one behind the other (see resident.py)
            first = e.mb.slice_by_size(x=e.mb.reshape(x=e.value(positions), shape=[count]), begin=[0], size=[1])
            begin = e.mb.concat(values=[first, np.zeros(1, np.int32)], axis=0)
            found = e.mb.slice_by_size(x=e.value(table), begin=begin, size=[count, shape_of(table)[1]])
            return e.mb.reshape(x=found, shape=[1, 1, count, shape_of(table)[1]])
        found = e.mb.gather(x=e.value(table), indices=e.value(positions), axis=0)
        return e.sizes.reshape(found, [batch, 1, count, shape_of(table)[1]])

    return e.once(("rows", positions, table), look_up)


@emits("planish.rms_norm")
def rms_norm(e: Emitter, node: fx.Node) -> Var:
    """x / sqrt(mean(x^2) + eps) * weight; the statistics stay fp32 unless the audit has shown that fp16 holds them."""
    given = arguments(node)
    seen = range_of(given["x"])
    narrow = seen is not None and seen.peak <= _LARGEST_HALF_NORM and seen.mean_square >= _SMALLEST_HALF_MEAN
    x = e.value(given["x"])
    with e.full_precision(not narrow):
        mean = e.mb.reduce_mean(x=e.mb.mul(x=x, y=x), axes=[-1], keep_dims=True)
        epsilon = stored_epsilon(e, given["eps"]) if narrow else np.float32(given["eps"])
        scaled = e.mb.mul(x=x, y=e.mb.rsqrt(x=e.mb.add(x=mean, y=epsilon)))
    if given["weight"] is None:
        return e.mb.identity(x=scaled, name=node.name)
    return e.mb.mul(x=scaled, y=e.value(given["weight"]), name=node.name)


@emits("planish.gated")
def gated(e: Emitter, node: fx.Node) -> Var:
    """activation(gate) * up."""
    given = arguments(node)
    gate, kind = e.value(given["gate"]), str(given["activation"])
    if kind.startswith("gelu"):
        active = e.mb.gelu(x=gate, mode="EXACT" if kind == "gelu" else "TANH_APPROXIMATION")
    else:
        active = getattr(e.mb, kind)(x=gate)  # silu, relu, sigmoid
    return e.mb.mul(x=active, y=e.value(given["up"]), name=node.name)
