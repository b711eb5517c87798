"""What a saved package holds: quantised weights, operations, dtypes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch

from planish_passes.errors import PlanishError
from planish_passes.palette import Palette
from planish_passes.weights import QuantizedTensor, WeightFormat
from planish_targets.contract import Artifact
from planish_targets.coreml import mil


def read_weights(artifact: Artifact) -> dict[str, QuantizedTensor]:
    """Integers and scales from the package's files, by weight name.

    Raises:
        PlanishError: the package is damaged, or lacks a weight that lowering wrote.
    """
    return {name: _quantized(blob) for name, blob in _stored(artifact).items() if blob.lut is None}


def read_palettes(artifact: Artifact) -> dict[str, Palette]:
    """Indices and tables from the package's files, by weight name.

    Raises:
        PlanishError: the package is damaged, or lacks a weight that lowering wrote.
    """
    found = {name: blob for name, blob in _stored(artifact).items() if blob.lut is not None}
    return {name: _palette(blob, str(artifact.path)) for name, blob in found.items()}


def _palette(blob: mil.QuantizedBlob, where: str) -> Palette:
    assert blob.lut is not None
    groups, *across, entries, width = blob.lut.shape
    if set(across) | {width} != {1}:
        what = f"tables of {blob.name} are not for groups of rows: {list(blob.lut.shape)}"
        raise PlanishError(what, where, "compile the model again")
    return Palette(blob.data.flatten(1), blob.lut.to(torch.float32).view(groups, entries))


def _stored(artifact: Artifact) -> dict[str, mil.QuantizedBlob]:
    names = artifact.options.get("weights", {})
    assert isinstance(names, Mapping)
    stored = mil.load(artifact.path).quantized_weights()
    missing = sorted(set(names) - set(stored))
    if missing:
        raise PlanishError(f"no quantised weight {', '.join(missing)}", str(artifact.path), "compile the model again")
    return {str(weight): stored[name] for name, weight in names.items()}


def _quantized(blob: mil.QuantizedBlob) -> QuantizedTensor:
    assert blob.scale is not None
    scale, offset = blob.scale, blob.offset
    if blob.op_type == "constexpr_affine_dequantize":  # one number per channel, or one zero point for all
        assert offset is not None
        scale = scale.reshape(-1, 1)
        offset = offset.reshape(-1, 1) if bool(offset.any()) else None
    data, scale, offset = (None if t is None else t.flatten(1) for t in (blob.data, scale, offset))
    assert data is not None
    assert scale is not None
    groups, columns = scale.shape[1], data.shape[1]
    bits = int(blob.dtype.removeprefix("int").removeprefix("u"))
    format = WeightFormat(bits=bits, group=0 if groups == 1 else columns // groups, symmetric=offset is None)
    return QuantizedTensor(data, scale.to(torch.float32), offset, format)


def inspect(path: Path) -> dict[str, object] | None:
    """Operations, bytes by dtype and ports of a .mlpackage; None for anything else."""
    if path.suffix != ".mlpackage" or not (path / "Manifest.json").is_file():
        return None
    program = mil.load(path)
    dtypes: Counter[str] = Counter()
    ops: Counter[str] = Counter()
    compressed = program.quantized_weights()
    for operation in program.operations(constants=True):
        if operation.type != "const":
            ops[operation.type] += 1
            continue
        for output in operation.outputs:
            if output.shape is not None and output.dtype != "string":
                dtypes[output.dtype] += torch.Size(d or 0 for d in output.shape).numel() * _bits(output.dtype) // 8
    for blob in compressed.values():
        dtypes[blob.dtype] += blob.data.numel() * _bits(blob.dtype) // 8
    return {
        "format": "Core ML program (.mlpackage)",
        "ops": dict(ops.most_common()),
        "dtypes": dict(dtypes.most_common()),
        "inputs": [{"name": p.name, "shape": list(p.shape), "dtype": _short(p.dtype)} for p in program.inputs],
        "outputs": [{"name": p.name, "shape": list(p.shape), "dtype": _short(p.dtype)} for p in program.outputs],
        **_more(path, program),
        "bytes": sum(f.stat().st_size for f in path.rglob("*") if f.is_file()),
    }


def _more(path: Path, program: mil.MilProgram) -> dict[str, object]:
    """What packages of language models have besides: states, and more functions than the one that is described."""
    more: dict[str, object] = {}
    if program.states:
        more["states"] = [{"name": p.name, "shape": list(p.shape), "dtype": _short(p.dtype)} for p in program.states]
    names = mil.functions(path)
    return {**more, "functions": list(names)} if len(names) > 1 else more


def _bits(dtype: str) -> int:
    digits = "".join(c for c in dtype if c.isdigit())
    return int(digits) if digits else 8


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
