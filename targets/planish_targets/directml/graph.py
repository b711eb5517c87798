"""What placement needs to know of an ONNX file: element types of every value, constants, bodies, source modules."""

from __future__ import annotations

import ast
from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish_passes.errors import PlanishError
from planish_targets.directml.kernels import signature

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto

# Larger initializers are emptied before shape inference, which copies the whole model.
_KEEP_BYTES = 1024
# Shapes, axes and bounds: no one writes longer ones.
_SMALL = 100


@dataclass(frozen=True)
class Constant:
    """An initializer or the value of a Constant node.

    Args:
        elements: number of elements.
        nbytes: bytes of the stored tensor.
        values: the elements of a small int64 tensor; None when it is large, not int64, or not readable.
    """

    elements: int
    nbytes: int
    values: tuple[int, ...] | None


@dataclass(frozen=True)
class View:
    """One graph of the model: the main graph or the body of a control-flow node.

    Args:
        path: `""` for the main graph, else `<node>.<attribute>/` per level.
        nodes: all nodes but Constant, in file order (topological by the ONNX rules).
        names: one name per node; nameless nodes get `<op>_<index>`.
        types: value name -> element type; outer values included, unknown ones absent.
        constants: value name -> constant; outer ones included.
        owned: names of the constants that this graph itself defines.
        inputs: names of the graph inputs.
        outputs: names of the graph outputs.
        opsets: domain -> imported version.
    """

    path: str
    nodes: tuple[NodeProto, ...]
    names: tuple[str, ...]
    types: Mapping[str, str]
    constants: Mapping[str, Constant]
    owned: frozenset[str]
    inputs: frozenset[str]
    outputs: frozenset[str]
    opsets: Mapping[str, int]

    def producers(self) -> dict[str, int]:
        """Value name -> index of the node of this graph that writes it."""
        return {out: i for i, node in enumerate(self.nodes) for out in node.output if out}


def load(path: Path) -> ModelProto:
    """Read an ONNX file without its external data; local functions are inlined, as ONNX Runtime does.

    Raises:
        PlanishError: there is no such file, or it is no ONNX file.
    """
    import onnx
    import onnx.inliner
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if not path.is_file():
        raise PlanishError("There is no such ONNX file.", str(path), "Give the path of the .onnx file itself.")
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise PlanishError(f"Not a readable ONNX file: {error}.", str(path), "Export it again.") from error
    if not model.opset_import:
        raise PlanishError("The file imports no operator set.", str(path), "Export it again.")
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def views(model: ModelProto, folder: Path) -> list[View]:
    """The main graph first, then every nested body; empties large initializers of `model`.

    Args:
        folder: where the external data lies.
    """
    import onnx

    constants = {name: _constant(tensor, folder) for name, tensor in _constants(model.graph)}
    types = {name: _element_type(tensor.data_type) for name, tensor in _constants(model.graph)}
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > _KEEP_BYTES:
            tensor.ClearField("raw_data")
    # A broken corner of the graph leaves types unknown; the check then says "unknown" for its nodes.
    with suppress(onnx.shape_inference.InferenceError):
        model = onnx.shape_inference.infer_shapes(model)
    opsets = {o.domain or "ai.onnx": o.version for o in model.opset_import}
    return list(_walk(model.graph, "", ChainMap(types), ChainMap(constants), opsets, folder))


def _walk(
    graph: GraphProto,
    path: str,
    types: ChainMap[str, str],
    constants: ChainMap[str, Constant],
    opsets: Mapping[str, int],
    folder: Path,
) -> Iterator[View]:
    if path:
        own = list(_constants(graph))
        constants = constants.new_child({name: _constant(tensor, folder) for name, tensor in own})
        types = types.new_child({name: _element_type(tensor.data_type) for name, tensor in own})
    for value in (*graph.input, *graph.output, *graph.value_info):
        if (known := _type_name(value.type)) is not None:
            types[value.name] = known
    nodes = tuple(n for n in graph.node if n.op_type != "Constant")
    for node in nodes:
        _propagate(node, types, opsets)
    names = tuple(path + (node.name or f"{node.op_type}_{i}") for i, node in enumerate(nodes))
    inputs, outputs = (frozenset(value.name for value in ports) for ports in (graph.input, graph.output))
    yield View(path, nodes, names, types, constants, frozenset(constants.maps[0]), inputs, outputs, opsets)
    for node, name in zip(nodes, names, strict=True):
        for attribute in node.attribute:
            if attribute.HasField("g"):
                inner = f"{name}.{attribute.name}/"
                yield from _walk(attribute.g, inner, types.new_child(), constants, opsets, folder)


def _constants(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    overridable = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if tensor.name not in overridable:
            yield tensor.name, tensor
    for node in graph.node:
        if node.op_type == "Constant":
            yield node.output[0], _constant_tensor(node.attribute[0])


def _constant_tensor(attribute: AttributeProto) -> TensorProto:
    import numpy as np
    from onnx import helper, numpy_helper

    if attribute.name == "value":
        return attribute.t
    value = helper.get_attribute_value(attribute)
    kinds: dict[str, Any] = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32}
    kind = kinds.get(attribute.name, np.float32 if attribute.name == "value_floats" else np.bytes_)
    return numpy_helper.from_array(np.asarray(value, dtype=object if kind is np.bytes_ else kind))


def _constant(tensor: TensorProto, folder: Path) -> Constant:
    elements = prod(tensor.dims)
    return Constant(elements, tensor_bytes(tensor), _small_values(tensor, elements, folder))


def _small_values(tensor: TensorProto, elements: int, folder: Path) -> tuple[int, ...] | None:
    from onnx import TensorProto, numpy_helper

    if tensor.data_type != TensorProto.INT64 or elements > _SMALL:
        return None
    if tensor.data_location == TensorProto.EXTERNAL:
        entry = {e.key: e.value for e in tensor.external_data}
        file = folder / entry.get("location", "")
        if not file.is_file():
            return None
        with file.open("rb") as stream:
            stream.seek(int(entry.get("offset", 0)))
            data = stream.read(8 * elements)
        return tuple(int.from_bytes(data[i : i + 8], "little", signed=True) for i in range(0, len(data), 8))
    return tuple(int(v) for v in numpy_helper.to_array(tensor).reshape(-1))


def tensor_bytes(tensor: TensorProto) -> int:
    """Stored bytes of a tensor: elements times width, four-bit types packed by two; 0 for strings."""
    name = _element_type(tensor.data_type)
    if name == "string":
        return 0
    elements: int = prod(tensor.dims)
    widths = {"bool": 8, "float": 32, "double": 64, "complex64": 64, "complex128": 128}
    if name.startswith(("float8", "float4")):
        bits = int(name[5])
    else:
        bits = widths.get(name) or int("".join(c for c in name if c.isdigit()) or 8)
    return (elements * bits + 7) // 8


def _element_type(data_type: int) -> str:
    from onnx import TensorProto

    return str(TensorProto.DataType.Name(data_type)).lower()


def _type_name(proto: TypeProto) -> str | None:
    kind = proto.WhichOneof("value")
    if kind == "tensor_type":
        return _element_type(proto.tensor_type.elem_type) if proto.tensor_type.elem_type else None
    if kind in ("sequence_type", "optional_type"):
        inner = _type_name(getattr(proto, kind).elem_type)
        return f"{'seq' if kind == 'sequence_type' else 'optional'}({inner})" if inner else None
    return None


def domain_of(node: NodeProto) -> str:
    """The node's domain, the default one spelled `ai.onnx`."""
    return node.domain or "ai.onnx"


def attributes(node: NodeProto) -> dict[str, Any]:
    """Attribute name -> value."""
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _propagate(node: NodeProto, types: ChainMap[str, str], opsets: Mapping[str, int]) -> None:
    """Types that onnx does not infer: outputs of contrib operators, and whatever follows them."""
    missing = [i for i, out in enumerate(node.output) if out and out not in types]
    if not missing:
        return
    if node.op_type == "Cast":
        types[node.output[0]] = _element_type(attributes(node)["to"])
        return
    found = signature(domain_of(node), node.op_type, opsets.get(domain_of(node), 1))
    if found is None:
        return
    bound = dict(found.fixed)
    for i, name in enumerate(node.input):
        if (parameter := found.input(i)) is not None and name in types:
            bound[parameter] = types[name]
    for i in missing:
        parameter = found.output(i)
        if parameter is None:
            continue
        # A lower-case name is a fixed type, not a parameter.
        if (resolved := bound.get(parameter, parameter if parameter[0].islower() else None)) is not None:
            types[node.output[i]] = resolved


def module_of(node: NodeProto) -> str | None:
    """Path of the module that the node came from, as planish or torch's exporter records it; None when neither did."""
    recorded = {p.key: p.value for p in node.metadata_props}
    if "planish.module" in recorded:
        return recorded["planish.module"] or None
    if scopes := recorded.get("pkg.torch.onnx.name_scopes"):
        # The last scope is the traced operator itself; the exporter marks nodes of no module with a placeholder.
        path = [s for s in ast.literal_eval(scopes)[:-1] if s and not s.startswith("_empty_nn_module_stack")]
        return str(path[-1]) if path else None
    if namespace := recorded.get("namespace"):
        path = [part.partition(":")[0].strip() for part in namespace.split("/")[:-1]]
        return next((part for part in reversed(path) if part), None)
    return node.doc_string or None
