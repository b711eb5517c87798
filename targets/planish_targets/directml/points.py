"""Zero points of symmetric 4-bit weights: bytes that say 8 twice, one tensor for all weights of a shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from planish_passes.weights import TensorSpec, WeightStore
from planish_targets.directml.composites import MIDDLES
from planish_targets.onnx_graph.decoder import PLANISH
from planish_targets.onnx_graph.pack import IMPLIED

if TYPE_CHECKING:
    import onnx_ir as ir

_BYTE = 0x88


def fold_middles(model: ir.Model, weights: WeightStore) -> WeightStore:
    """Put a weight in the place of every `MIDDLES` node.

    Returns:
        The weights, with one more tensor per shape.
    """
    import onnx_ir as ir

    for node in [n for n in model.graph if n.domain == PLANISH and n.op_type == MIDDLES]:
        rows, columns = (node.attributes[a].as_int() for a in ("rows", "columns"))
        name = f"{IMPLIED}{rows}x{columns}"
        if name not in model.graph.initializers:
            weights = _with_middles(weights, name, rows, columns)
            value = ir.Value(name=name, shape=ir.Shape((rows, columns)), type=ir.TensorType(ir.DataType.UINT8))
            model.graph.initializers.add(value)
        node.outputs[0].replace_all_uses_with(model.graph.initializers[name])
        model.graph.remove(node, safe=True)
    return weights


def _with_middles(weights: WeightStore, name: str, rows: int, columns: int) -> WeightStore:
    def some(start: int, stop: int) -> Tensor:
        return torch.full((stop - start, columns), _BYTE, dtype=torch.uint8)

    return weights.with_lazy(name, TensorSpec((rows, columns), torch.uint8), lambda: some(0, rows), rows=some)
