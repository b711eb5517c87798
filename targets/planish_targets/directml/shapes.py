"""Target shapes of Reshape as constants, so that nothing is left to compute about them while the model runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def constant_shapes(model: ir.Model) -> None:
    """A size that the input has at the same place becomes 0 ("copy"), at most one other unknown size -1.

    Computed shapes send their nodes to the CPU (source: `placement.shape_region`). Reshapes with two sizes that are
    neither known nor copied stay as they are.
    """
    import numpy as np
    import onnx_ir as ir

    for node in model.graph:
        if node.op_type != "Reshape" or node.domain or node.inputs[1] is None:
            continue
        if node.inputs[1].is_initializer() or node.inputs[1].const_value is not None:
            continue
        sizes = _sizes(node)
        if sizes is None:
            continue
        name = f"shape_{node.outputs[0].name}"
        value = ir.Value(name=name, shape=ir.Shape([len(sizes)]), type=ir.TensorType(ir.DataType.INT64))
        value.const_value = ir.Tensor(np.array(sizes, dtype=np.int64), name=name)
        model.graph.initializers.add(value)
        node.replace_input_with(1, value)
        node.attributes.pop("allowzero", None)


def _sizes(node: ir.Node) -> list[int] | None:
    source, result = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or result.shape is None:
        return None
    given, wanted = list(source.shape), list(result.shape)
    sizes: list[int] = []
    for i, size in enumerate(wanted):
        known = size if isinstance(size, int) and size > 0 else None
        same = i < len(given) and not isinstance(given[i], int) and str(given[i]) == str(size)
        sizes.append(known if known is not None else 0 if same else -1)
    return sizes if sizes.count(-1) <= 1 else None
