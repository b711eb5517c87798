"""Read a written ONNX file: its weights as integers, and what is in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from planish_passes.errors import PlanishError
from planish_passes.quantise import MINIMA, SCALES, VALUES
from planish_passes.weights import QuantizedTensor, WeightFormat
from planish_targets.onnx_graph.pack import BLOCKS, COLUMN, IMPLIED, unpack
from planish_targets.onnx_graph.tidy import TRANSPOSED


def quantized_weights(path: Path) -> Mapping[str, QuantizedTensor]:
    """Every int8 weight with its scales, by program weight name; transposed storage is turned back.

    Raises:
        PlanishError: the external data is shorter than the file says; names the tensor.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path, load_external_data=False).graph
    held = {t.name: t for t in graph.initializer}

    def tensor(name: str) -> torch.Tensor:
        _check_extent(held[name], path)
        return torch.from_numpy(numpy_helper.to_array(held[name], base_dir=str(path.parent)).copy())

    found = {}
    for name in held:
        base = name.removesuffix(TRANSPOSED).removesuffix(VALUES)
        if name.removesuffix(TRANSPOSED) != base + VALUES or base + SCALES not in held:
            continue
        values, scales = tensor(name), tensor(base + SCALES).to(torch.float32)
        values = values.t().contiguous() if name.endswith(TRANSPOSED) else values
        found[base] = QuantizedTensor(values, scales.reshape(values.shape[0], -1), None, WeightFormat())
    for node in graph.node:
        if node.op_type in _GROUPED:
            name, tensors = _grouped(node, tensor)
            found.setdefault(name, tensors)
    return with_minima(found, {n: lambda n=n: tensor(n) for n in held})  # type: ignore[misc]


def with_minima(
    found: Mapping[str, QuantizedTensor], held: Mapping[str, Callable[[], torch.Tensor]]
) -> dict[str, QuantizedTensor]:
    """The weights with the minima that the file holds for them.

    Args:
        held: name of every tensor in the file -> its values.
    """
    complete = dict(found)
    for name, weight in found.items():
        if (minima := held.get(name + MINIMA)) is not None:
            complete[name] = replace(weight, minima=minima().to(torch.float32))
        elif (minima := held.get(name + MINIMA + TRANSPOSED)) is not None:
            complete[name] = replace(weight, minima=minima().to(torch.float32).t().contiguous())
    return complete


_GROUPED = {"MatMulNBits": (1, 2, 3), "GatherBlockQuantized": (0, 2, 3)}  # where integers, scales, zero points are


def _grouped(node: Any, tensor: Callable[[str], torch.Tensor]) -> tuple[str, QuantizedTensor]:
    values, scales, points = (node.input[i] if i < len(node.input) else "" for i in _GROUPED[node.op_type])
    options = {a.name: a.i for a in node.attribute}
    factors = tensor(scales).to(torch.float32).flatten(1)
    packed = tensor(values).reshape(factors.shape[0], -1)
    bits = options.get("bits", 4)
    integers = unpack(packed, bits, packed.shape[1] * 8 // bits)
    zeros = None
    if points.endswith(COLUMN):
        zeros = (tensor(points).flatten(1).to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)
    elif points and not points.startswith(IMPLIED):
        zeros = unpack(tensor(points), bits, factors.shape[1])
    name = values.removesuffix(BLOCKS).removesuffix(VALUES)
    return name, QuantizedTensor(integers, factors, zeros, WeightFormat(bits, options["block_size"], zeros is None))


def _check_extent(tensor: object, path: Path) -> None:
    entries = {e.key: e.value for e in getattr(tensor, "external_data", ())}
    if not entries:
        return
    file = path.parent / entries["location"]
    needed = int(entries.get("offset", 0)) + int(entries.get("length", 0))
    if not file.is_file() or file.stat().st_size < needed:
        raise PlanishError(
            f"the weights file is shorter than {needed} bytes, or missing",
            f"{file.name}, tensor {getattr(tensor, 'name', '')!r}",
            "the artifact is damaged; compile it again",
        )


def describe(path: Path) -> Mapping[str, object]:
    """{"format", "ops", "dtypes", "inputs", "outputs", "bytes"} of an ONNX file; weights are not loaded."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    dtypes: Counter[str] = Counter()
    files = {path.name}
    for tensor in model.graph.initializer:
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        dtypes[str(kind)] += int(torch.Size(tensor.dims).numel()) * kind.itemsize
        files |= {e.value for e in tensor.external_data if e.key == "location"}
    opsets = ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import)
    return {
        "format": f"ONNX ({opsets})",
        "ops": dict(Counter(n.op_type for n in model.graph.node)),
        "dtypes": dict(dtypes),
        "inputs": [_port(v) for v in model.graph.input],
        "outputs": [_port(v) for v in model.graph.output],
        "bytes": sum((path.parent / f).stat().st_size for f in files if (path.parent / f).is_file()),
    }


def _port(value: object) -> dict[str, object]:
    import onnx

    kind = value.type.tensor_type  # type: ignore[attr-defined]
    shape = [d.dim_param or d.dim_value for d in kind.shape.dim]
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return {"name": value.name, "dtype": dtype, "shape": shape}  # type: ignore[attr-defined]
