"""Quantised weights in a .aimodel: where lowering put them, and what the saved file says they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from planish_passes.errors import PlanishError
from planish_passes.palette import Palette, palettes
from planish_passes.program import Program
from planish_passes.quantise import quantized
from planish_passes.weights import QuantizedTensor, WeightFormat
from planish_targets.coreai.asset import Asset, Graph, Operation, open_asset, parsed

INTEGERS, INDICES = "coreai.blockwise_shift_scale", "coreai.lut_to_dense"
Place = dict[str, Any]
"""Where one copy of a weight lies: the function, the number of the operation that expands it (in the file's order),
that of the constant with its minima (see `_minima`), and whether zero points, zeros in the file, stand for none."""


def locate(path: Path, program: Program) -> dict[str, list[Place]]:
    """Weight name -> its places in a model just written.

    A file names no weights: they are found by their values. Equal weights are each other's places.

    Raises:
        PlanishError: a weight of the program is nowhere in the file.
    """
    asset, places = open_asset(path), dict[str, list[Place]]()
    stored = [(f, n, _read(asset, graph, op)) for f, graph, n, op in _expanded(asset)]
    wanted: dict[str, QuantizedTensor | Palette] = {**quantized(program), **palettes(program)}
    for name, truth in wanted.items():
        facts = {"symmetric": isinstance(truth, Palette) or truth.zero_points is None}
        places[name] = [
            {"function": f, "operation": n, "minima": _minima(asset, f, truth), **facts}
            for f, n, found in stored
            if same(found, truth)
        ]
        if {p["function"] for p in places[name]} != set(asset.functions()):
            raise PlanishError(
                "a quantised weight is not in the .aimodel as it was handed over",
                name,
                "this version of coreai-torch encodes it in another way; report it with the model's config.json",
            )
    return places


def read(path: Path, places: Mapping[str, list[Place]]) -> dict[str, QuantizedTensor | Palette]:
    """Weights by name, from the bytes of the file.

    Raises:
        PlanishError: the file is damaged, a place is gone, or the copies of one weight differ.
    """
    asset = open_asset(path)
    found: dict[str, QuantizedTensor | Palette] = {}
    there = {(f, n): (graph, op) for f, graph, n, op in _expanded(asset)}
    for name, copies in places.items():
        keys = [(p["function"], p["operation"]) for p in copies]
        if any(key not in there for key in keys):
            raise PlanishError("a quantised weight is not where lowering put it", name, "compile the model again")
        first, *others = [_copy(asset, *there[key], place) for key, place in zip(keys, copies, strict=True)]
        if any(not same(first, other) for other in others):
            raise PlanishError(
                "the copies of a quantised weight in the .aimodel differ", name, "compile the model again"
            )
        found[name] = first
    return found


def _minima(asset: Asset, function: str, truth: QuantizedTensor | Palette) -> list[int] | None:
    """Number of the constant with a weight's minima, and 1 when it holds them transposed; None when there are none."""
    wanted = None if isinstance(truth, Palette) else truth.minima
    if wanted is None:
        return None
    for transposed, form in enumerate((wanted, wanted.T)):
        for number, op in enumerate(asset.graphs[function].operations):
            alike = op.constant is not None and parsed(op.types[0]) == (tuple(form.shape), "f32")
            if alike and torch.equal(asset.tensor(op), form):
                return [number, transposed]
    raise PlanishError("minima of a quantised weight are not in the .aimodel", function, "compile the model again")


def _copy(asset: Asset, graph: Graph, op: Operation, place: Place) -> QuantizedTensor | Palette:
    found = _read(asset, graph, op)
    if isinstance(found, Palette):
        return found
    if found.zero_points is None and not place["symmetric"]:
        zeros = torch.zeros(found.scales.shape, dtype=torch.int8)
        found = replace(found, zero_points=zeros, format=replace(found.format, symmetric=False))
    if place["minima"] is None:
        return found
    number, transposed = place["minima"]
    constants = [o for o in graph.operations[number : number + 1] if o.constant is not None]
    if not constants:
        raise PlanishError("minima are not where lowering put them", graph.name, "compile the model again")
    minima = asset.tensor(constants[0])
    return replace(found, minima=minima.T if transposed else minima)


def same(a: QuantizedTensor | Palette, b: QuantizedTensor | Palette) -> bool:
    """True for equal integers, scales and zero points, or equal indices and tables."""
    if isinstance(a, Palette) or isinstance(b, Palette):
        both = isinstance(a, Palette) and isinstance(b, Palette)
        return both and _equal(a.indices, b.indices) and _equal(a.tables, b.tables)  # type: ignore[union-attr]
    zeros = [torch.zeros_like(t.scales, dtype=torch.int8) if t.zero_points is None else t.zero_points for t in (a, b)]
    return _equal(a.values, b.values) and _equal(a.scales, b.scales) and _equal(*zeros)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b.to(a.dtype))


def _expanded(asset: Asset) -> Iterator[tuple[str, Graph, int, Operation]]:
    for name, graph in asset.functions().items():
        for number, op in enumerate(graph.operations):
            if op.op in (INTEGERS, INDICES):
                yield name, graph, number, op


def _read(asset: Asset, graph: Graph, op: Operation) -> QuantizedTensor | Palette:
    constants, where = graph.constants(), str(asset.resources.path)
    if any(v not in constants for v in op.inputs):
        raise PlanishError(f"an operand of {op.op} is computed at run time", where, "compile the model again")
    operands = [constants[v] for v in op.inputs]
    if op.op == INDICES:
        indices, entries = (asset.tensor(o) for o in operands[:2])
        return Palette(indices, entries.view(entries.shape[0], -1))
    values, scales, zeros, offsets = (asset.tensor(o) for o in operands)
    if offsets.any():
        raise PlanishError(f"{op.op} adds offsets that planish never writes", where, "compile the model again")
    bits = int(parsed(operands[0].types[0])[1].removeprefix("si"))
    groups, columns = scales.shape[1], values.shape[1]
    symmetric = not bool(zeros.any())
    format = WeightFormat(bits, 0 if groups == 1 else columns // groups, symmetric)
    return QuantizedTensor(values, scales, None if symmetric else zeros, format)
