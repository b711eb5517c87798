"""Turn a typed float32 ONNX graph into a float16 one whose inputs and outputs stay as they are."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from planish_passes.quantise import MINIMA
from planish_passes.weights import TensorSpec, WeightStore
from planish_targets.directml import kernels
from planish_targets.directml.precision import LARGEST, full_precision, is_float
from planish_targets.onnx_graph.tidy import TRANSPOSED
from planish_targets.onnx_graph.translate import MODULE

if TYPE_CHECKING:
    import onnx_ir as ir

# Constants of up to this many elements stay float32 where float32 is read; larger ones would show in the file.
_SMALL = 1 << 14


def to_half(
    model: ir.Model,
    weights: WeightStore,
    opset: int,
    *,
    ports: frozenset[str] = frozenset(),
    large: frozenset[str] = frozenset(),
) -> WeightStore:
    """Change `model` in place; Casts stand where float16 and float32 meet (see `precision.full_precision`).

    Constants beyond the range of float16, which are mask fills, become its largest finite number everywhere.

    Args:
        ports: names of inputs and outputs that become float16 too (caches, which go from one call into the next).
        large: program nodes that keep float32.

    Returns:
        The weights, with float16 forms under the names that the graph now uses.
    """
    _complete_types(model.graph, opset)
    _clamp_constants(model.graph)
    half = _Half(model.graph, weights, opset, ports, large)
    half.run()
    return half.weights


def _complete_types(graph: ir.Graph, opset: int) -> None:
    import onnx_ir as ir

    for node in graph:
        domain = node.domain or "ai.onnx"
        signature = kernels.signature(domain, node.op_type, opset if domain == "ai.onnx" else 1)
        if signature is None:
            continue
        known = {signature.input(i): v.dtype for i, v in enumerate(node.inputs) if v is not None and v.dtype}
        for i, value in enumerate(node.outputs):
            name = signature.output(i)
            if value.dtype is not None or name is None:
                continue
            fixed = signature.fixed.get(name, name if name[0].islower() else None)
            dtype = ir.DataType[fixed.upper()] if fixed else known.get(name)
            if dtype is not None:
                value.type = ir.TensorType(dtype)


def _clamp_constants(graph: ir.Graph) -> None:
    import numpy as np
    import onnx_ir as ir

    for value in graph.initializers.values():
        if value.const_value is not None and is_float(value):
            array = value.const_value.numpy()
            within = np.where(np.isfinite(array), np.clip(array, -LARGEST, LARGEST), array).astype(array.dtype)
            value.const_value = ir.Tensor(within, name=value.name)


def _within_range(tensor: Tensor) -> Tensor:
    return torch.where(tensor.isfinite(), tensor.clamp(-LARGEST, LARGEST), tensor)


class _Half:
    def __init__(
        self, graph: ir.Graph, weights: WeightStore, opset: int, ports: frozenset[str], large: frozenset[str]
    ) -> None:
        self.graph, self.weights, self.opset, self.ports = graph, weights, opset, ports
        self.full = full_precision(graph, opset, large)
        self.floats = {v for node in graph for v in (*node.inputs, *node.outputs) if v is not None and is_float(v)}
        self.casts: dict[tuple[ir.Value, str], ir.Value] = {}

    def run(self) -> None:
        nodes = list(self.graph)
        wants = {(n, i): self._wanted(n, i) for n in nodes for i, v in enumerate(n.inputs) if v in self.floats}
        for node in nodes:
            self._set_outputs(node)
        self._set_graph_inputs()
        for value in list(self.graph.initializers.values()):
            if value in self.floats:
                self._set_initializer(value, {wants[use] for use in value.uses() if use in wants})
        for (node, i), wanted in wants.items():
            source = node.inputs[i]
            assert source is not None
            if str(source.dtype) != wanted:
                node.replace_input_with(i, self._cast(source, wanted, node))
        self._set_graph_outputs()
        self.graph.sort()

    def _wanted(self, node: ir.Node, index: int) -> str:
        return "FLOAT" if node in self.full or self._fixed(node, index, outputs=False) else "FLOAT16"

    def _fixed(self, node: ir.Node, index: int, *, outputs: bool) -> bool:
        """True when the operator takes float32 alone at this place."""
        domain = node.domain or "ai.onnx"
        signature = kernels.signature(domain, node.op_type, self.opset if domain == "ai.onnx" else 1)
        name = (signature.output(index) if outputs else signature.input(index)) if signature else None
        return signature is not None and name is not None and signature.fixed.get(name, name) == "float"

    def _set_outputs(self, node: ir.Node) -> None:
        import onnx_ir as ir

        if node in self.full:
            return
        for i, value in enumerate(node.outputs):
            if value in self.floats and not self._fixed(node, i, outputs=True):
                value.type = ir.TensorType(ir.DataType.FLOAT16)
        if node.op_type == "Cast" and node.outputs[0] in self.floats:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT16))

    def _set_initializer(self, value: ir.Value, wanted: set[str]) -> None:
        import numpy as np
        import onnx_ir as ir

        assert value.shape is not None
        name, large = str(value.name), prod(int(d) for d in value.shape) > _SMALL
        kept = name.removesuffix(TRANSPOSED).endswith(MINIMA)  # exact numbers, which float16 would round
        half = not kept and (large or "FLOAT" not in wanted)
        if half:
            value.type = ir.TensorType(ir.DataType.FLOAT16)
        if value.const_value is not None:
            kind = np.float16 if half else np.float32
            value.const_value = ir.Tensor(value.const_value.numpy().astype(kind), name=name)
        else:
            self._derive(name, torch.float16 if half else torch.float32)

    def _derive(self, name: str, dtype: torch.dtype) -> None:
        before = self.weights  # the new form must read the old one, not itself
        spec = TensorSpec(before.spec(name).shape, dtype)
        self.weights = before.derive(name, (name,), lambda t: _within_range(t).to(dtype), spec, by_rows=True)

    def _cast(self, value: ir.Value, dtype: str, reader: ir.Node) -> ir.Value:
        """`value` in another type: one Cast per value, right behind its producer."""
        import onnx_ir as ir

        found = self.casts.get((value, dtype))
        if found is None:
            to = ir.DataType[dtype]
            producer = value.producer() or reader
            found = ir.Value(name=f"{value.name}_{dtype.lower()}", shape=value.shape, type=ir.TensorType(to))
            cast = ir.node("Cast", [value], {"to": int(to)}, outputs=[found], name=f"cast_{value.name}_{dtype.lower()}")
            if MODULE in producer.metadata_props:
                cast.metadata_props[MODULE] = producer.metadata_props[MODULE]
            self.graph.append(cast)
            self.casts[value, dtype] = found
        return found

    def _set_graph_inputs(self) -> None:
        import onnx_ir as ir

        for value in self.graph.inputs:
            if value.name in self.ports and is_float(value):
                value.type = ir.TensorType(ir.DataType.FLOAT16)

    def _set_graph_outputs(self) -> None:
        for i, value in enumerate(self.graph.outputs):
            wanted = "FLOAT16" if value.name in self.ports else "FLOAT"
            if value.dtype is None or value.dtype.name == wanted or value.dtype.name not in ("FLOAT", "FLOAT16"):
                continue
            name, producer = value.name, value.producer()
            value.name = f"{name}_{value.dtype.name.lower()}"
            assert producer is not None
            port = self._cast(value, wanted, producer)
            if port.is_graph_output():
                port = self._second_name(port)
            port.name = name
            self.graph.outputs[i] = port

    def _second_name(self, value: ir.Value) -> ir.Value:
        """A second name for a value that two outputs return."""
        import onnx_ir as ir

        copied = ir.Value(shape=value.shape, type=value.type)
        self.graph.append(ir.node("Identity", [value], outputs=[copied]))
        return copied
