"""Quantised weights in a .pte: where lowering put them, and their integers and scales read back from the file."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from planish_passes.errors import PlanishError
from planish_passes.program import Program, op_name
from planish_passes.quantise import VALUES
from planish_passes.weights import QuantizedTensor, WeightFormat
from planish_targets.executorch import tables
from planish_targets.executorch.linear import SHIFTS
from planish_targets.executorch.operands import HIGH, LOW
from planish_targets.executorch.pairs import PAIR_SHIFTS, PINNED
from planish_targets.executorch.pte import PteFile, from_bytes, xnnpack_graphs

Place = dict[str, Any]
"""Where one copy of a weight lies: form ("channels" = int8, "nibbles" = int4, "halves" = int8 as two int4, all in
XNNPACK delegates, or one of `tables`); values and scales: keys of what the file stores; zeros: key of constants that
stand for zero points, or "", and how many columns of another meaning are behind them; shape: rows, columns, groups;
bits; symmetric."""

_INTEGERS = {"xnn_datatype_qcint8": 8, "xnn_datatype_qcint4": 4, "xnn_datatype_qbint4": 4}
_AGAIN = "compile the model again"


def locate(file: PteFile, program: Program) -> dict[str, list[Place]]:
    """Weight name -> the places in a file just written that hold its integers, scales and zero points.

    Args:
        file: what was written.
        program: what was handed over.

    Raises:
        PlanishError: a weight of the program is nowhere in the file.
    """
    places: dict[str, list[Place]] = defaultdict(list)
    for base, found in (*_linears(program), *tables.locate(file, program)):
        if found is not None and found not in places[base]:
            places[base].append(found)
    stored = _stored(file)
    for base, found_all in places.items():
        linears = [p for p in found_all if p["form"] not in tables.FORMS]
        gone = any(pair not in stored for p in linears for pair in zip(p["values"], p["scales"], strict=True))
        if not found_all or gone or any(p["zeros"] and (p["zeros"], "") not in stored for p in linears):
            raise PlanishError(
                "a quantised weight is not in the .pte file as it was handed over",
                base,
                "this executorch version encodes it in another way; report it with the model's config.json",
            )
    return dict(places)


def read(file: PteFile, places: Mapping[str, list[Place]]) -> dict[str, QuantizedTensor]:
    """Integers, scales and zero points by weight name, from the bytes of the file.

    Raises:
        PlanishError: a place is gone, or the copies of one weight differ.
    """
    stored, found = _stored(file), {}
    for name, copies in places.items():
        tensors = []
        for place in copies:
            if place["form"] in tables.FORMS:
                tensors.append(tables.read(file, place, name))
                continue
            if any(pair not in stored for pair in zip(place["values"], place["scales"], strict=True)):
                raise PlanishError("a quantised weight is not where lowering put it", name, _AGAIN)
            tensors.append(_linear(file, place, name))
        if any(not same(tensors[0], other) for other in tensors[1:]):
            raise PlanishError("the copies of a quantised weight in the .pte differ", name, _AGAIN)
        found[name] = tensors[0]
    return found


def same(a: QuantizedTensor, b: QuantizedTensor) -> bool:
    """True for equal integers, scales and zero points."""
    zeros, others = a.zero_points, b.zero_points
    equal = zeros is others if zeros is None or others is None else torch.equal(zeros, others)
    return equal and torch.equal(a.values, b.values) and torch.equal(a.scales, b.scales)


def duplicates(places: Mapping[str, list[Place]]) -> int:
    """Bytes of integers that the file holds more than once, because two runtimes want them in two layouts."""
    size = 0
    for copies in places.values():
        rows, columns, _ = copies[0]["shape"]
        size += (len(copies) - 1) * rows * columns * copies[0]["bits"] // 8
    return size


def _linears(program: Program) -> Iterable[tuple[str, Place]]:
    """Each linear weight, with the keys that its bytes have in XNNPACK's store: XNNPACK names constants by content."""
    names = program.weight_names()
    shifts = {n.removesuffix(s): n for n in program.weights for s in (SHIFTS, PAIR_SHIFTS) if n.endswith(s)}
    halves: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    shapes: dict[str, tuple[list[int], bool]] = {}
    for node in program.graph.nodes:
        if not op_name_is_weight(node):
            continue
        values, scales = names[node.args[0].name], names[node.args[1].name]
        suffix = next((s for s in (VALUES, HIGH, LOW) if values.endswith(s)), None)
        if suffix is None:
            continue
        base, nibbles = values.removesuffix(suffix), min(a for a in node.args if isinstance(a, int)) == -8
        halves[base][suffix] = _keys(program, values, scales, nibbles)
        rows, columns = program.weights.spec(values).shape
        shapes[base] = [rows, columns, torch.Size(program.weights.spec(scales).shape).numel() // rows], nibbles
    for base, parts in halves.items():
        shape, nibbles = shapes[base]
        order = [parts[s] for s in (VALUES, HIGH, LOW) if s in parts]
        more = PINNED if base in shifts and shifts[base].endswith(PAIR_SHIFTS) else 0
        told = base in shifts and program.weights.spec(shifts[base]).shape[1] > more
        zeros = digest(program.weights.read(shifts[base])) if told else ""
        form = "halves" if HIGH in parts else "nibbles" if nibbles else "channels"
        yield (
            base,
            {
                "form": form,
                "values": [v for v, _ in order],
                "scales": [s for _, s in order],
                "zeros": zeros,
                "columns_behind_zeros": more,
                "shape": shape,
                "bits": 4 if form == "nibbles" else 8,
                "symmetric": not zeros or (form == "halves" and _constant(program, base, shifts[base])),
            },
        )


def op_name_is_weight(node: fx.Node) -> bool:
    """True where a stored weight becomes an operand."""
    return node.op == "call_function" and op_name(node) in (
        "quantized_decomposed.dequantize_per_channel",
        "quantized_decomposed.dequantize_per_channel_group",
    )


def _constant(program: Program, base: str, shifts: str) -> bool:
    """True when all zero points of an int8 weight in two halves are 0."""
    names = [n for n in program.weights if n.startswith(base)]
    scales = next(program.weights.read(n) for n in names if n.endswith(".q_scales"))
    return torch.equal(program.weights.read(shifts)[:, : scales.shape[1]], scales * 8)


def _keys(program: Program, values: str, scales: str, nibbles: bool) -> tuple[str, str]:
    integers, factors = program.weights.read(values), program.weights.read(scales)
    stored = factors.to(torch.bfloat16).view(torch.int16) if factors.dim() == 2 else factors
    return digest(packed(integers) if nibbles else integers), "scale_" + digest(stored)


def packed(values: Tensor) -> Tensor:
    """int8 [N, K] in -8..7 as uint8 [N, K / 2], 8 added, the even column in the low four bits: XNNPACK's layout."""
    codes = (values + 8).view(torch.uint8)
    return codes[:, 1::2] << 4 | codes[:, ::2]


def unpacked(codes: Tensor) -> Tensor:
    """The inverse of `packed`."""
    return torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2).view(torch.int8) - 8


def digest(tensor: Tensor) -> str:
    """What XNNPACK's store calls these bytes."""
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def _stored(file: PteFile) -> set[tuple[str, str]]:
    """(key of the integers, key of the scales) of every linear in a delegate; ("key", "") of those of floats."""
    found = set()
    for graph in xnnpack_graphs(file).values():
        constants, values = graph["constant_data"], {}
        for value in graph["xvalues"]:
            union = value["xvalue_union"]
            tensor = union.get("tensor_value", union)
            values[tensor["id_out"]] = (tensor, union.get("quant_params"))
        for node in graph["xnodes"]:
            if node["xnode_union_type"] == "XNNFullyConnected":
                tensor, quantisation = values[node["xnode_union"]["filter_id"]]
                key = constants[tensor["constant_buffer_idx"]]["named_key"]
                integers = tensor["datatype"] in _INTEGERS
                scales = constants[quantisation["scale_buffer_idx"]]["named_key"] if integers else ""
                found.add((key, scales))
    return found


def _linear(file: PteFile, place: Place, name: str) -> QuantizedTensor:
    rows, columns, groups = place["shape"]
    parts = []
    for key in place["values"]:
        if place["form"] == "channels":
            parts.append(from_bytes(file.named(key), torch.int8, (rows, columns)))
        else:
            parts.append(unpacked(from_bytes(file.named(key), torch.uint8, (rows, columns // 2))))
    dtype = torch.bfloat16 if groups > 1 else torch.float32
    factors = [from_bytes(file.named(k), dtype, (rows, groups)).to(torch.float32) for k in place["scales"]]
    scales, shift, values = factors[-1], 0, parts[-1]
    if place["form"] == "halves":
        values, shift = (parts[0] << 4) + (values + 8), 8
        if not torch.equal(factors[0], scales * 16):
            raise PlanishError("the two halves of a quantised weight have scales that do not fit", name, _AGAIN)
    zeros = None
    if place["zeros"]:
        stored = groups + int(place.get("columns_behind_zeros", 0))
        constants = from_bytes(file.named(place["zeros"]), torch.float32, (rows, stored))[:, :groups]
        zeros = (shift - torch.round(constants / scales)).to(torch.int8)
        if not torch.equal((shift - zeros.to(torch.float32)) * scales, constants):
            raise PlanishError("the zero points of a quantised weight do not fit to its scales", name, _AGAIN)
        if place["symmetric"]:
            if zeros.any():
                raise PlanishError("a symmetric weight has zero points in the .pte", name, _AGAIN)
            zeros = None
    group = columns // groups if groups > 1 else 0
    return QuantizedTensor(values, scales, zeros, WeightFormat(place["bits"], group, zeros is None))
