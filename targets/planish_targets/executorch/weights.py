"""Quantised weights in a .pte: where lowering put them, and their integers and scales read back from the file."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from planish_passes.errors import PlanishError
from planish_passes.program import Program
from planish_passes.quantise import SCALES, VALUES
from planish_passes.weights import QuantizedTensor, WeightFormat
from planish_targets.executorch.linear import CHANNEL_SCALES
from planish_targets.executorch.pte import PteFile, from_bytes, xnnpack_graphs

_SCALES = (CHANNEL_SCALES, SCALES)  # DynamicLinear puts the first in the place of the second


@dataclass(frozen=True)
class _Stored:
    """One weight in the file, read when asked for.

    `key` names it: sha256 of the integers at lowering time (XNNPACK's name for them), or `value:<index in the plan>`.
    """

    key: str
    scales_key: str
    values: Callable[[], Tensor]
    scales: Callable[[], Tensor]


def locate(file: PteFile, program: Program) -> dict[str, list[list[str]]]:
    """Weight name -> the places ([key, scales key]) in a file just written that hold its integers and scales.

    Raises:
        PlanishError: a weight of the program is nowhere in the file.
    """
    stored: dict[str, list[_Stored]] = {}
    for entry in _stored(file):
        stored.setdefault(_digest(entry.values()), []).append(entry)
    places: dict[str, list[list[str]]] = {}
    for name in sorted(n for n in program.weights if n.endswith(VALUES)):
        base = name.removesuffix(VALUES)
        scales = program.weights.read(next(base + s for s in _SCALES if base + s in program.weights)).reshape(-1)
        same = stored.get(_digest(program.weights.read(name)), [])
        found = [[e.key, e.scales_key] for e in same if torch.equal(e.scales(), scales)]
        if not found:
            raise PlanishError(
                "a quantised weight is not in the .pte file as it was handed over",
                base,
                "this executorch version encodes it in another way; report it with the model's config.json",
            )
        places[base] = [list(p) for p in dict.fromkeys(map(tuple, found))]
    return places


def read(file: PteFile, places: Mapping[str, list[list[str]]]) -> dict[str, QuantizedTensor]:
    """Integers and scales by weight name, from the bytes of the file.

    Raises:
        PlanishError: a place is gone, or the copies of one weight differ.
    """
    stored = {(e.key, e.scales_key): e for e in _stored(file)}
    found: dict[str, QuantizedTensor] = {}
    for name, keys in places.items():
        copies = [stored[key, scales] for key, scales in keys if (key, scales) in stored]
        if len(copies) != len(keys):
            raise PlanishError("a quantised weight is not where lowering put it", name, "compile the model again")
        values, scales = copies[0].values(), copies[0].scales()
        if any(not torch.equal(c.values(), values) or not torch.equal(c.scales(), scales) for c in copies[1:]):
            raise PlanishError("the copies of a quantised weight in the .pte differ", name, "compile the model again")
        found[name] = QuantizedTensor(values, scales.view(-1, 1), None, WeightFormat(8))
    return found


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()


def _stored(file: PteFile) -> Iterator[_Stored]:
    for graph in xnnpack_graphs(file).values():
        yield from _linears(file, graph)
    yield from _tables(file)


def _linears(file: PteFile, graph: Mapping[str, Any]) -> Iterator[_Stored]:
    constants, values = graph["constant_data"], {}
    for value in graph["xvalues"]:
        union = value["xvalue_union"]
        tensor = union.get("tensor_value", union)
        values[tensor["id_out"]] = (tensor, union.get("quant_params"))
    for node in graph["xnodes"]:
        if node["xnode_union_type"] != "XNNFullyConnected":
            continue
        tensor, quantisation = values[node["xnode_union"]["filter_id"]]
        if tensor["datatype"] != "xnn_datatype_qcint8":
            continue
        key = constants[tensor["constant_buffer_idx"]]["named_key"]
        scales_key = constants[quantisation["scale_buffer_idx"]]["named_key"]
        shape = tuple(tensor["dims"])
        yield _Stored(
            key,
            scales_key,
            partial(_named, file, key, torch.int8, shape),
            partial(_named, file, scales_key, torch.float32, shape[:1]),
        )


def _named(file: PteFile, key: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return from_bytes(file.named(key), dtype, shape)


def _tables(file: PteFile) -> Iterator[_Stored]:
    """Pairs of embedding calls on the same ids: an int8 table [V, D] and float32 scales [V, 1]."""
    integers: dict[int, list[int]] = {}
    scales: dict[int, list[int]] = {}
    for instruction in file.plan.chains[0].instructions:
        call = instruction.instr_args
        if type(call).__name__ != "KernelCall" or file.plan.operators[call.op_index].name != "aten::embedding":
            continue
        table, ids = call.args[:2]
        if file.is_constant(table):
            tensor = file.plan.values[table].val
            if int(tensor.scalar_type) == 1:
                integers.setdefault(ids, []).append(table)
            elif tensor.sizes[1] == 1:
                scales.setdefault(ids, []).append(table)
    for ids, tables in integers.items():
        for table, factors in itertools.product(tables, scales.get(ids, ())):
            if file.plan.values[table].val.sizes[0] == file.plan.values[factors].val.sizes[0]:
                read_scales = partial(_flat, file, factors)
                yield _Stored(f"value:{table}", f"value:{factors}", partial(file.constant, table), read_scales)


def _flat(file: PteFile, value: int) -> Tensor:
    return file.constant(value).reshape(-1)
