"""Weights in groups, as kernels of com.microsoft store them: unsigned, two 4-bit integers to a byte, low half first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from planish_passes.bits import pack, unpack
from planish_passes.weights import TensorSpec, WeightStore
from planish_targets.onnx_graph.decoder import PACK, PLANISH

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["fold_packing", "pack", "unpack"]

BLOCKS, POINTS = ".blocks", ".points"  # integers; zero points, as densely
COLUMN = ".column"  # scales or zero points with an axis of one behind, a byte to each zero point
IMPLIED = "zero_points_of_8."  # start of the names of zero points that state what symmetric weights have anyway


def fold_packing(model: ir.Model, weights: WeightStore) -> tuple[WeightStore, dict[str, str]]:
    """Take the packing nodes out of the graph; the weights are packed when they are written.

    Returns:
        The weights with packed forms added, and name -> name of a tensor whose bytes are the same.
    """
    import onnx_ir as ir

    aliases: dict[str, str] = {}
    for node in [n for n in model.graph if n.domain == PLANISH and n.op_type == PACK]:
        source = node.inputs[0]
        assert source is not None
        bits, group = (node.attributes[a].as_int() for a in ("bits", "group"))
        name = f"{source.name}{BLOCKS if group > 0 else COLUMN if group < 0 else POINTS}"
        if name not in model.graph.initializers:
            given = weights.spec(str(source.name))
            spec = _spec(given, bits, group)
            packer = _Packer(0 if given.dtype.is_floating_point else 8 if group < 0 else bits, bits, spec.shape[1:])
            weights = weights.derive(name, (str(source.name),), packer, spec, by_rows=True)
            kind = ir.DataType.FLOAT if spec.dtype == torch.float32 else ir.DataType.UINT8
            value = ir.Value(name=name, shape=ir.Shape(spec.shape), type=ir.TensorType(kind))
            model.graph.initializers.add(value)
        node.outputs[0].replace_all_uses_with(model.graph.initializers[name])
        model.graph.remove(node, safe=True)
    for name in model.graph.initializers:
        owner = name.removesuffix(COLUMN)
        held = model.graph.initializers.get(owner)
        # Nothing but the column may be left to read the scales.
        if name.endswith(COLUMN) and held is not None and held.uses() and weights.spec(name).dtype == torch.float32:
            aliases[name] = owner
    model.graph.opset_imports.pop(PLANISH, None)
    return weights, aliases


class _Packer:
    def __init__(self, stored: int, bits: int, shape: tuple[int, ...]) -> None:
        self.stored, self.bits, self.shape = stored, bits, shape

    def __call__(self, values: Tensor) -> Tensor:
        if not self.stored:  # floating point: another shape of the same bytes
            return values.reshape(-1, *self.shape)
        # Codes of fewer bits than they are stored in keep the offset of their own width.
        shift = 2 ** (self.bits - 1) - 2 ** (self.stored - 1)
        return pack((values + shift) if shift else values, self.stored).reshape(-1, *self.shape)


def _spec(source: TensorSpec, bits: int, group: int) -> TensorSpec:
    rows, columns = source.shape
    if group > 0:
        return TensorSpec((rows, columns // group, group * bits // 8), torch.uint8)
    if group < 0:
        return TensorSpec((rows, columns, 1), torch.float32 if source.dtype.is_floating_point else torch.uint8)
    return TensorSpec((rows, -(-columns * bits // 8)), torch.uint8)
