"""Clean an ONNX graph of what the exporter leaves behind. Nothing here changes a result."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from planish_passes.weights import TensorSpec, WeightStore

if TYPE_CHECKING:
    import onnx_ir as ir

TRANSPOSED = ".transposed"


def tidy(model: ir.Model, weights: WeightStore) -> WeightStore:
    """Fold transposes of weights, share equal constants and sub-expressions, drop what is dead.

    Args:
        model: changed in place.
        weights: the program's weights.

    Returns:
        The weights, with transposed forms added under NAME.transposed.
    """
    from onnx_ir.passes import common

    weights = _fold_transposes(model, weights)
    logging.getLogger("onnx_ir.passes").setLevel(logging.ERROR)  # it warns once per weight that has no data yet
    for step in (
        common.IdentityEliminationPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(size_limit=4096),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
    ):
        step(model)
    for node in model.graph:
        # 0 in a target shape would mean "copy"; no shape here has one, and DirectML rejects the attribute.
        if node.op_type == "Reshape":
            node.attributes.pop("allowzero", None)
        if node.op_type == "SkipSimplifiedLayerNormalization":
            for output in node.outputs[1:3]:
                output.name = ""  # mean and deviation, which nobody reads
    model.graph.sort()
    return weights


def _fold_transposes(model: ir.Model, weights: WeightStore) -> WeightStore:
    import onnx_ir as ir

    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Transpose" else None
        if source is None or source.name not in weights or source.name not in model.graph.initializers:
            continue
        permutation = node.attributes["perm"].as_ints()
        if list(permutation) != [1, 0]:
            continue
        name = str(source.name) + TRANSPOSED
        if name not in model.graph.initializers:
            spec = weights.spec(str(source.name))
            shape = tuple(reversed(spec.shape))
            weights = weights.derive(
                name, (str(source.name),), lambda t: t.t().contiguous(), TensorSpec(shape, spec.dtype)
            )
            value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(source.dtype))
            model.graph.initializers.add(value)
        node.outputs[0].replace_all_uses_with(model.graph.initializers[name])
        model.graph.remove(node, safe=True)
    return weights
