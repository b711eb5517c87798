"""Epsilons in written .onnx and .ort files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from planish_passes.errors import PlanishError
from planish_targets import attributes as steps
from planish_targets.attributes import Number, Step
from planish_targets.contract import Attribute
from planish_targets.onnx_graph.translate import MODULE

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

# What an operator that leaves the attribute out means (onnx.defs; ContribOperators.md of ONNX Runtime).
_DEFAULTS = dict.fromkeys(
    ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "EmbedLayerNormalization"), 1e-12
)
_DEFAULT = 1e-5
_NO_EPSILON = frozenset(("LpNormalization", "MeanVarianceNormalization"))
_NORMS = ("Normalization", "GroupNorm")
_KINDS = {
    **dict.fromkeys(("Cast", "CastLike", "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze"), steps.SAME),
    "Sqrt": steps.ROOT,
    "Add": steps.ADD,
}
_WIDE = {1: torch.float32, 10: torch.float16, 11: torch.float64}  # TensorProto's numbers of floating types


def read_onnx(path: Path) -> tuple[Attribute, ...]:
    """Epsilons of the main graph and of all bodies in it; large weights are not loaded.

    Raises:
        PlanishError: there is no such file, or it is no ONNX file.
    """
    import onnx
    import onnx.inliner
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    _demand(path)
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as problem:
        raise PlanishError(f"not a readable ONNX file: {problem}", str(path), "compile the model again") from problem
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    nodes = list(_walk(model.graph))
    stored: dict[str, TensorProto] = {t.name: t for t in model.graph.initializer}
    stored |= {n.output[0]: a.t for n in nodes if n.op_type == "Constant" for a in n.attribute if a.name == "value"}

    def number(name: Any) -> Number | None:
        tensor = stored.get(name)
        if tensor is None or tensor.data_type not in _WIDE or prod(tensor.dims) != 1:
            return None
        value = onnx.numpy_helper.to_array(tensor, base_dir=str(path.parent)).reshape(-1)[0]
        return Number(float(value), _WIDE[tensor.data_type])

    return steps.attributes([_of_node(n, number) for n in nodes], number)


def module_names(path: Path) -> dict[str, str]:
    """Value name -> source module of the node of an .onnx file that makes it."""
    import onnx

    nodes = onnx.load(path, load_external_data=False).graph.node
    return {o: p.value for n in nodes for p in n.metadata_props if p.key == MODULE for o in n.output}


def read_ort(path: Path, modules: dict[str, str]) -> tuple[Attribute, ...]:
    """Epsilons of the main graph of an .ort file, which ONNX Runtime has optimised.

    Args:
        modules: value name -> source module; values that optimisation made up are in none.

    Raises:
        PlanishError: there is no such file.
    """
    import numpy as np
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.InferenceSession import InferenceSession

    _demand(path)
    graph = InferenceSession.GetRootAs(np.memmap(path, dtype=np.uint8, mode="r").data, 0).Model().Graph()
    stored = {t.Name(): t for t in (graph.Initializers(i) for i in range(graph.InitializersLength()))}

    def number(name: Any) -> Number | None:
        tensor = stored.get(name)
        if tensor is None or tensor.DataType() not in _WIDE or tensor.RawDataLength() == 0:
            return None
        values = torch.from_numpy(tensor.RawDataAsNumpy().copy()).view(_WIDE[tensor.DataType()])
        return Number(float(values), values.dtype) if values.numel() == 1 else None

    return steps.attributes([_of_ort(graph.Nodes(i), modules, number) for i in range(graph.NodesLength())], number)


def _demand(path: Path) -> None:
    if not path.is_file():
        raise PlanishError(f"there is no {path.name}", str(path.parent), "compile the model again")


def _walk(graph: Any) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _walk(attribute.g)


_Find = Callable[[Any], Number | None]


def _of_node(node: NodeProto, number: _Find) -> Step:
    module = next((p.value for p in node.metadata_props if p.key == MODULE), "")
    stated = next((a.f for a in node.attribute if a.name == "epsilon"), None)
    return _step(node.op_type, list(node.input), node.output[0], module, stated, number)


def _of_ort(node: Any, modules: dict[str, str], number: _Find) -> Step:
    given = [node.Inputs(i) for i in range(node.InputsLength())]
    held = (node.Attributes(i) for i in range(node.AttributesLength()))
    stated = next((a.F() for a in held if a.Name() == b"epsilon"), None)
    output = node.Outputs(0)
    return _step(node.OpType().decode(), given, output, modules.get(output.decode(), ""), stated, number)


def _step(op: str, inputs: Sequence[Any], output: Any, module: str, stated: float | None, number: _Find) -> Step:
    if op.endswith(_NORMS) and op not in _NO_EPSILON:
        value = torch.tensor(_DEFAULTS.get(op, _DEFAULT) if stated is None else stated, dtype=torch.float32)
        return Step(steps.NORM, op, tuple(inputs), output, module, Number(float(value), torch.float32))
    power = number(inputs[1]) if op == "Pow" else None
    kind = steps.ROOT if power is not None and steps.is_half(power.value) else _KINDS.get(op, steps.OTHER)
    return Step(kind, op, tuple(inputs), output, module)
