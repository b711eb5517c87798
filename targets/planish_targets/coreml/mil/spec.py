"""Reads the specification of a saved package.

Only this module sees protobuf. Every constant that lives in the weight file is checked here, before
anything runs, and read later, when an operation needs it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from planish_passes.errors import PlanishError
from planish_targets.coreml.mil.blob import BlobFile
from planish_targets.coreml.mil.errors import CorruptPackage
from planish_targets.coreml.mil.graph import Binding, Block, Function, Immediate, Literal, Named, Operation, Ref, Stored
from planish_targets.coreml.mil.types import BY_PROTO, DType, TensorType, unpack

MODEL_PATH = "@model_path"
PROTO_PACKAGE = "planish_coreml_proto"


def read_function(package: Path, function: str | None) -> Function:
    """Read one function of a saved .mlpackage (or of a bare .mlmodel file).

    Args:
        package: the package folder.
        function: its name; None takes the only or the default function.

    Raises:
        CorruptPackage: a file is missing, unreadable or contradicts another.
        PlanishError: not an ML program, or no such function.
    """
    path, spec = _specification(package)
    name = _pick(spec, function, path)
    proto = spec.mlProgram.functions[name]
    block = proto.block_specializations.get(proto.opset)
    if block is None:
        raise CorruptPackage(f"function {name} declares opset {proto.opset} and has no block for it", str(path))
    reader = _Reader(path.parent)
    inputs = tuple(reader.named(entry) for entry in proto.inputs)
    return Function(name, reader.block(block), inputs, _limits(spec, name), _shapes(spec, name))


def function_names(package: Path) -> tuple[str, ...]:
    """Names of the functions of a saved .mlpackage; errors as of `read_function`."""
    return tuple(sorted(_specification(package)[1].mlProgram.functions))


def _specification(package: Path) -> tuple[Path, Any]:
    path = _model_file(package)
    spec = _messages().Model()
    decode_error = importlib.import_module("google.protobuf.message").DecodeError
    try:
        spec.ParseFromString(path.read_bytes())
    except decode_error as error:
        raise CorruptPackage(f"the model specification cannot be decoded: {error}", str(path)) from error
    if spec.WhichOneof("Type") != "mlProgram":
        raise PlanishError(
            f"holds a {spec.WhichOneof('Type')}, not an ML program", str(path), "convert with convert_to='mlprogram'"
        )
    return path, spec


def _messages() -> Any:
    """coremltools' generated protobuf module for `Model.proto`.

    Loaded as a package of its own: importing coremltools itself brings in its converters, which takes
    two hundred times as long. protobuf's descriptor pool makes both copies the same classes.
    """
    loaded = sys.modules.get("coremltools.proto.Model_pb2")
    if loaded is not None:
        return loaded
    if PROTO_PACKAGE not in sys.modules:
        found = importlib.util.find_spec("coremltools")
        if found is None or not found.submodule_search_locations:
            raise PlanishError("coremltools is not installed", "the Core ML target", "pip install coremltools")
        folder = Path(found.submodule_search_locations[0]) / "proto"
        package = importlib.util.spec_from_file_location(
            PROTO_PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert package is not None
        assert package.loader is not None
        module = importlib.util.module_from_spec(package)
        sys.modules[PROTO_PACKAGE] = module
        package.loader.exec_module(module)
    return importlib.import_module(f"{PROTO_PACKAGE}.Model_pb2")


def _model_file(package: Path) -> Path:
    if package.is_file():
        return package
    manifest = package / "Manifest.json"
    if not manifest.is_file():
        raise CorruptPackage("no Manifest.json: not an .mlpackage", str(package))
    try:
        content = json.loads(manifest.read_text())
        relative = content["itemInfoEntries"][content["rootModelIdentifier"]]["path"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CorruptPackage(f"the manifest names no root model ({error!r})", str(manifest)) from error
    path = package / "Data" / PurePosixPath(relative)
    if not path.is_file():
        raise CorruptPackage("the model file that the manifest names is missing", str(path))
    return path


def _pick(spec: Any, function: str | None, path: Path) -> str:
    names = sorted(spec.mlProgram.functions)
    if function is None:
        function = names[0] if len(names) == 1 else spec.description.defaultFunctionName or "main"
    if function not in names:
        raise PlanishError(f"no function {function!r} in the package", str(path), f"it holds {', '.join(names)}")
    return function


def _limits(spec: Any, function: str) -> dict[str, tuple[tuple[int, int | None], ...]]:
    described = {entry.name: entry.input for entry in spec.description.functions}
    limits = {}
    for entry in described.get(function, spec.description.input):
        ranges = entry.type.multiArrayType.shapeRange.sizeRanges
        if ranges:
            limits[entry.name] = tuple((r.lowerBound, None if r.upperBound < 0 else r.upperBound) for r in ranges)
    return limits


def _shapes(spec: Any, function: str) -> dict[str, tuple[tuple[int, ...], ...]]:
    described = {entry.name: entry.input for entry in spec.description.functions}
    found = {}
    for entry in described.get(function, spec.description.input):
        listed = entry.type.multiArrayType.enumeratedShapes.shapes
        if listed:
            found[entry.name] = tuple(tuple(s.shape) for s in listed)
    return found


class _Reader:
    """Turns protobuf messages into records; `folder` is where `@model_path` points."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, BlobFile] = {}

    def block(self, proto: Any) -> Block:
        return Block(
            inputs=tuple(self.named(entry) for entry in proto.inputs),
            operations=tuple(self.operation(entry) for entry in proto.operations),
            outputs=tuple(proto.outputs),
        )

    def operation(self, proto: Any) -> Operation:
        outputs = tuple(self.named(entry) for entry in proto.outputs)
        label = outputs[0].name if outputs else proto.type
        name = label
        inputs: dict[str, tuple[Binding, ...]] = {}
        for key, argument in sorted(proto.inputs.items()):  # protobuf's own order differs from process to process
            inputs[key] = tuple(self.binding(entry, f"{label}.{key}") for entry in argument.arguments)
        # before iOS 18 the parameters of constexpr ops are attributes, as the value of a const still is
        for key, value in proto.attributes.items():
            if key == "name":
                name = str(self.value(value, label))
            elif proto.type == "const" or proto.type.startswith("constexpr_"):
                inputs[key] = (self.value(value, label if key == "val" else f"{label}.{key}"),)
        return Operation(proto.type, name, inputs, outputs, tuple(self.block(entry) for entry in proto.blocks))

    def binding(self, proto: Any, label: str) -> Binding:
        return Ref(proto.name) if proto.WhichOneof("binding") == "name" else self.value(proto.value, label)

    def named(self, proto: Any) -> Named:
        if proto.type.WhichOneof("type") == "stateType":
            return Named(proto.name, self.type(proto.type.stateType.wrappedType), state=True)
        return Named(proto.name, self.type(proto.type))

    def type(self, proto: Any) -> TensorType:
        """Lists, tuples and dictionaries get a shape of None: no supported operation makes or takes them."""
        if proto.WhichOneof("type") != "tensorType":
            return TensorType(BY_PROTO[2], None)
        tensor = proto.tensorType
        dims = tuple(
            dim.constant.size if dim.WhichOneof("dimension") == "constant" else None for dim in tensor.dimensions
        )
        dtype = BY_PROTO.get(tensor.dataType)
        if dtype is None:
            raise CorruptPackage(f"unknown element type number {tensor.dataType}", str(self.folder))
        variadic = any(dim.unknown.variadic for dim in tensor.dimensions)
        return TensorType(dtype, None if variadic else dims)

    def value(self, proto: Any, label: str) -> Literal:
        declared = self.type(proto.type)
        shape = tuple(dim for dim in declared.shape or () if dim is not None)
        if proto.WhichOneof("value") == "blobFileValue":
            blob = proto.blobFileValue
            file = self.file(blob.fileName, label)
            file.check(blob.offset, declared.dtype, shape, label)
            return Stored(label, declared, shape, file, blob.offset)
        immediate = proto.immediateValue
        if immediate.WhichOneof("value") != "tensor":
            return str(immediate)
        if declared.dtype.kind == "string":
            strings = immediate.tensor.strings.values
            return str(strings[0]) if strings else ""
        return Immediate(declared, self.immediate(immediate.tensor, declared.dtype, shape, label))

    def file(self, name: str, label: str) -> BlobFile:
        if name not in self.files:
            relative = PurePosixPath(name)
            if relative.parts[:1] != (MODEL_PATH,) or ".." in relative.parts:
                raise CorruptPackage(f"tensor {label}: weight file {name!r} lies outside the package", str(self.folder))
            self.files[name] = BlobFile(self.folder.joinpath(*relative.parts[1:]))
        return self.files[name]

    def immediate(self, proto: Any, dtype: DType, shape: tuple[int, ...], label: str) -> Tensor:
        which = proto.WhichOneof("value")
        count = 1
        for dim in shape:
            count *= dim
        if count == 0 or which is None:
            values = torch.empty(0, dtype=dtype.carrier)
        elif which == "bytes":
            values = _from_bytes(bytes(proto.bytes.values), dtype, count)
        else:
            listed = list(getattr(proto, which).values)
            values = torch.tensor(listed, dtype=dtype.carrier)
        if values.numel() != count:
            raise CorruptPackage(
                f"tensor {label}: {values.numel()} values for {dtype.name}{list(shape)}", str(self.folder)
            )
        return values.reshape(shape)


def _from_bytes(raw: bytes, dtype: DType, count: int) -> Tensor:
    buffer = bytearray(raw)
    if dtype.packed:
        packed = torch.frombuffer(buffer, dtype=torch.uint8)
        return unpack(packed, dtype, count) if packed.numel() * 8 >= count * dtype.bits else packed[:0]
    width = dtype.storage.itemsize
    if len(buffer) % width:
        return torch.empty(0, dtype=dtype.carrier)
    return torch.frombuffer(buffer, dtype=dtype.storage).to(dtype.carrier)
