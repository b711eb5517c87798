"""Quantised embedding tables: plain kernels for int8 rows, executorch's quantised kernels for everything else."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from planish_passes.errors import PlanishError
from planish_passes.infra import PassResult, Refusal
from planish_passes.program import Program, finish, op_name
from planish_passes.quantise import SCALES, VALUES
from planish_passes.quantise import ZEROS as ZERO_POINTS
from planish_passes.weights import QuantizedTensor, TensorSpec, WeightFormat
from planish_targets.executorch.edit import Call, caller, derived, swap
from planish_targets.executorch.pte import PteFile

FORMS = ("rows", "table", "offsets")
TABLE, OFFSETS = ".q_table", ".q_offsets"
_KERNELS = {"quantized_decomposed::embedding_byte": 8, "quantized_decomposed::embedding_4bit": 4}


def is_plain(node: fx.Node) -> bool:
    """True for a table of int8 rows with one scale each: two lookups and a product do, on every runtime."""
    return node.args[3] is None and node.args[4] == 8 and node.args[2].meta["val"].shape[1] == 1  # type: ignore[union-attr]


@dataclass(frozen=True)
class PlainTables:
    """`planish.embedding_q` of int8 rows with one scale each as two lookups and a product.

    Refused, left to executorch's quantised kernels: other widths, groups and zero points.
    """

    def run(self, program: Program) -> PassResult:
        """See the class."""
        changed, refused = 0, []
        for node in [n for n in program.graph.nodes if n.op == "call_function" and op_name(n) == "planish.embedding_q"]:
            if not is_plain(node):
                refused.append(Refusal.of(node, "plain kernels take int8 rows with one scale each"))
                continue
            ids, values, scales = node.args[:3]
            call, lookup = caller(program.graph, node), torch.ops.aten.embedding.default
            rows = call(torch.ops.aten.to.dtype, call(lookup, values, ids), scales.meta["val"].dtype)  # type: ignore[union-attr]
            swap(program.graph, node, call(torch.ops.aten.mul.Tensor, rows, call(lookup, scales, ids)))
            changed += 1
        return PassResult(finish(program), changed, tuple(refused))


def with_kernels(program: Program) -> Program:
    """Every `planish.embedding_q` that is left as a call of executorch's quantised kernels. Edits the program.

    Scales are stored as float16, which holds them exactly, where the kernel lets them be.

    Raises:
        PlanishError: a width that no kernel takes.
    """
    for node in [n for n in program.graph.nodes if n.op == "call_function" and op_name(n) == "planish.embedding_q"]:
        ids, values, _, zeros, bits = node.args
        assert isinstance(values, fx.Node)
        if bits not in (4, 8):
            raise PlanishError(
                f"executorch has no kernel for tables of {bits} bits", f"node {node.name}", "choose int4 or int8"
            )
        name = program.weight_names()[values.name].removesuffix(VALUES)
        program, table = _stored_table(program, values, name, int(bits))
        apart = zeros is not None and _exact_in_half(program, name)
        # Zero points must have the type of the result, and scales that of the zero points.
        dtype = torch.float16 if zeros is None or apart else torch.float32
        program, scales = _stored_as(program, name + SCALES, dtype)
        given = None
        if zeros is not None and not apart:
            program, given = _stored_as(program, name + ZERO_POINTS, dtype)
        kernels = operators()
        kernel, limit = (kernels.embedding_4bit, 8) if bits == 4 else (kernels.embedding_byte, 128)
        call = caller(program.graph, node)
        found = call(kernel.dtype, table, scales, given, -limit, limit - 1, ids, dtype=torch.float32)
        if apart:
            program, found = _less_offsets(program, call, name, ids, found)
        swap(program.graph, node, found)
    return finish(program)  # executorch would write what nothing reads any more


def offsets(scales: Tensor, zeros: Tensor) -> Tensor:
    """scale * zero point, float16 [V, G]."""
    return (scales * zeros.to(torch.float32)).to(torch.float16)


def _exact_in_half(program: Program, name: str) -> bool:
    """True when scales, and their products with zero points, are float16 numbers: half the bytes, the same values."""
    scales, zeros = program.weights.read(name + SCALES), program.weights.read(name + ZERO_POINTS)
    product = scales * zeros.to(torch.float32)
    return all(torch.equal(t.to(torch.float16).to(torch.float32), t) for t in (scales, product))


def _less_offsets(program: Program, call: Call, name: str, ids: Any, rows: fx.Node) -> tuple[Program, fx.Node]:
    """rows [..., D] - what zero points take from each of their groups."""
    aten, spec = torch.ops.aten, replace(program.weights.spec(name + SCALES), dtype=torch.float16)
    program, table = derived(program, name + OFFSETS, (name + SCALES, name + ZERO_POINTS), offsets, spec)
    wide = call(aten.to.dtype, call(aten.embedding.default, table, ids), torch.float32)
    sizes = [s if isinstance(s, int) else -1 for s in rows.meta["val"].shape]
    groups = spec.shape[1]
    grouped = call(aten.view.default, rows, [*sizes[:-1], groups, sizes[-1] // groups])
    less = call(aten.sub.Tensor, grouped, call(aten.unsqueeze.default, wide, -1))
    return program, call(aten.view.default, less, sizes)


def _stored_table(program: Program, values: fx.Node, name: str, bits: int) -> tuple[Program, fx.Node]:
    if bits == 8:
        return program, values
    rows, columns = program.weights.spec(name + VALUES).shape
    return derived(program, name + TABLE, (name + VALUES,), packed, TensorSpec((rows, columns // 2), torch.uint8))


def _stored_as(program: Program, name: str, dtype: torch.dtype) -> tuple[Program, fx.Node]:
    spec = replace(program.weights.spec(name), dtype=dtype)
    return derived(program, f"{name}_{str(dtype).removeprefix('torch.')}", (name,), lambda t: t.to(dtype), spec)


def packed(values: Tensor) -> Tensor:
    """int8 [V, D] in -8..7 as uint8 [V, D / 2], 8 added, the even column in the high four bits."""
    codes = (values + 8).view(torch.uint8)
    return codes[:, ::2] << 4 | codes[:, 1::2]


def unpacked(codes: Tensor) -> Tensor:
    """The inverse of `packed`."""
    return torch.stack((codes >> 4, codes & 15), dim=-1).flatten(-2).view(torch.int8) - 8


def operators() -> Any:
    """The namespace of executorch's quantised kernels, which an import registers."""

    return torch.ops.quantized_decomposed


def locate(file: PteFile, program: Program) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Each table of the program as handed over, with its place in the file, or None."""
    names, stored = program.weight_names(), list(_stored(file))
    for node in program.graph.nodes:
        if node.op != "call_function" or op_name(node) not in ("planish.embedding_q", "aten.embedding"):
            continue
        kept = op_name(node) == "planish.embedding_q"
        weight = names.get(node.args[1 if kept else 0].name, "")
        if not weight.endswith(VALUES):
            continue
        base = weight.removesuffix(VALUES)
        values, scales = program.weights.read(weight), program.weights.read(base + SCALES)
        zeros = program.weights.read(base + ZERO_POINTS) if kept and node.args[3] is not None else None
        bits = int(node.args[4]) if kept else 8
        shape = [*values.shape, scales.shape[1]]
        for form, keys in stored:
            place = {**keys, "form": form, "shape": shape, "bits": bits, "symmetric": zeros is None}
            if (place["zeros"] == "") != (zeros is None) or not _fits(file, place):
                continue
            found = read(file, place, base)
            equal = zeros is None or torch.equal(found.zero_points, zeros)  # type: ignore[arg-type]
            if equal and torch.equal(found.values, values) and torch.equal(found.scales, scales):
                yield base, place
                break
        else:
            yield base, None


def _fits(file: PteFile, place: dict[str, Any]) -> bool:
    rows, columns, groups = place["shape"]
    table, factors = (tuple(file.plan.values[int(place[k][0])].val.sizes) for k in ("values", "scales"))
    return table == (rows, columns * place["bits"] // 8) and factors == (rows, groups)


def read(file: PteFile, place: dict[str, Any], name: str) -> QuantizedTensor:
    """The table at a place.

    Raises:
        PlanishError: the file has no such table there.
    """
    rows, columns, groups = place["shape"]
    if (place["form"], {k: place[k] for k in ("values", "scales", "zeros")}) not in list(_stored(file)):
        raise PlanishError("a quantised table is not where lowering put it", name, "compile the model again")
    values, scales = (file.constant(int(place[k][0])) for k in ("values", "scales"))
    zeros = _zero_points(file, place, scales, name) if place["zeros"] else None
    values = unpacked(values) if place["bits"] == 4 else values.reshape(rows, columns)
    group = columns // groups if groups > 1 else 0
    format = WeightFormat(place["bits"], group, zeros is None)
    return QuantizedTensor(values, scales.to(torch.float32).reshape(rows, groups), zeros, format)


def _zero_points(file: PteFile, place: dict[str, Any], scales: Tensor, name: str) -> Tensor:
    stored = file.constant(int(place["zeros"]))
    if place["form"] != "offsets":
        return stored.to(torch.int8)
    products, factors = (t.reshape(len(t), -1).to(torch.float32) for t in (stored, scales))
    zeros = torch.round(products / factors)
    if not torch.equal(zeros * factors, products):
        raise PlanishError(
            "the zero points of a quantised table do not fit to its scales", name, "compile the model again"
        )
    return zeros.to(torch.int8)


def _stored(file: PteFile) -> Iterator[tuple[str, dict[str, Any]]]:
    """(form, keys) of every quantised table: indices of values in the plan."""
    integers: dict[int, list[int]] = {}
    scales: dict[int, list[int]] = {}
    halves: dict[int, list[int]] = {}  # tables of float16, by what looks them up
    bare: dict[int, list[dict[str, Any]]] = {}  # quantised ones without zero points
    for instruction in file.plan.chains[0].instructions:
        call = instruction.instr_args
        if type(call).__name__ != "KernelCall":
            continue
        name = file.plan.operators[call.op_index].name
        if name in _KERNELS:
            table, factors, zeros = call.args[:3]
            given = str(zeros) if file.is_constant(zeros) else ""
            keys = {"values": [str(table)], "scales": [str(factors)], "zeros": given}
            yield "table", keys
            if not given:
                bare.setdefault(call.args[5], []).append(keys)
        elif name == "aten::embedding" and file.is_constant(call.args[0]):
            table, ids = call.args[:2]
            tensor = file.plan.values[table].val
            if int(tensor.scalar_type) == 1:
                integers.setdefault(ids, []).append(table)
            elif int(tensor.scalar_type) == 5:
                halves.setdefault(ids, []).append(table)
            elif tensor.sizes[1] == 1:
                scales.setdefault(ids, []).append(table)
    for ids, found in integers.items():
        for table, factors in itertools.product(found, scales.get(ids, ())):
            if file.plan.values[table].val.sizes[0] == file.plan.values[factors].val.sizes[0]:
                yield "rows", {"values": [str(table)], "scales": [str(factors)], "zeros": ""}
    for ids, quantised in bare.items():
        for keys, table in itertools.product(quantised, halves.get(ids, ())):
            yield "offsets", {**keys, "zeros": str(table)}
