"""Quantised weights of a written file, tables that are only gathered included."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from planish_passes.quantise import SCALES, VALUES, ZEROS
from planish_passes.weights import QuantizedTensor, WeightFormat
from planish_targets.onnx_graph.pack import BLOCKS, POINTS, unpack
from planish_targets.onnx_graph.read import quantized_weights, with_minima


def read_weights(path: Path) -> Mapping[str, QuantizedTensor]:
    """Integers, scales and zero points by program weight name.

    Raises:
        PlanishError: the external data is shorter than the file says; names the tensor.
    """
    import onnx
    from onnx import numpy_helper

    found = dict(quantized_weights(path))  # first: it checks that the bytes are there
    held = {t.name: t for t in onnx.load(path, load_external_data=False).graph.initializer}

    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(numpy_helper.to_array(held[name], base_dir=str(path.parent)).copy())

    for name in held:
        base = name.removesuffix(BLOCKS).removesuffix(VALUES)
        if name == base + VALUES + BLOCKS and base not in found:
            scales = tensor(base + SCALES).to(torch.float32)
            packed = tensor(name).reshape(scales.shape[0], -1)
            columns = 2 * packed.shape[1]
            points = base + ZEROS + POINTS
            zeros = unpack(tensor(points), 4, scales.shape[1]) if points in held else None
            kind = WeightFormat(4, columns // scales.shape[1], zeros is None)
            found[base] = QuantizedTensor(unpack(packed, 4, columns), scales, zeros, kind)
        elif name == base + ZEROS and base in found:
            weight, zeros = found[base], tensor(name)
            group = weight.values.shape[1] // zeros.shape[1]
            found[base] = QuantizedTensor(weight.values, weight.scales, zeros, WeightFormat(8, group, False))
    return with_minima(found, {n: lambda n=n: tensor(n) for n in held})  # type: ignore[misc]
