"""A .aimodel on disk: is it whole, and what is in it."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from planish_passes.errors import PlanishError
from planish_targets.coreai import sdk
from planish_targets.coreai.resources import Resources, damaged, resources
from planish_targets.runner import environment, reason_of

PROGRAM, HASH, METADATA = "main.mlirb", "main.hash", "metadata.json"
SUFFIX = ".aimodel"
_SECONDS = 300.0  # until the process that reads a file is given up

TYPES: Mapping[str, tuple[torch.dtype, int]] = {
    "f32": (torch.float32, 32),
    "f16": (torch.float16, 16),
    "bf16": (torch.bfloat16, 16),
    "i1": (torch.bool, 8),
    **{f"si{n}": (torch.int8, n) for n in (2, 4)},
    **{f"ui{n}": (torch.uint8, n) for n in (1, 2, 3, 4, 6)},
    **{f"si{n}": (getattr(torch, f"int{n}"), n) for n in (8, 16, 32, 64)},
    **{f"ui{n}": (getattr(torch, f"uint{n}"), n) for n in (8, 16, 32)},
}
"""Element type in the file -> dtype of the tensor that it is read as, and bits that one element takes in the file."""


@dataclass(frozen=True)
class Operation:
    """One operation of a graph.

    Args:
        op: type in the file's words, e.g. "coreai.softmax".
        inputs, outputs: numbers of values, within the graph.
        types: of the outputs, e.g. "tensor<1x16xf32>".
        source: name of the node that it was converted from, "" where the file does not tell.
        callee: the graph that it calls, or "".
        constant: of a constant: {"resource"} or {"dtype", "shape", "data"} (see `look`).
    """

    op: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    types: tuple[str, ...]
    source: str = ""
    callee: str = ""
    constant: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Graph:
    """A function of the model, or a composite that functions call.

    Args:
        name: as in the file.
        composite: name of the operator that it spells out ("layer_norm"), "" for a function.
        epsilon: that the composite declares.
        inputs, outputs: (name, type); states are not among them.
        states: (name, type) of what a call reads and changes in place.
        operations: in order.
    """

    name: str
    composite: str
    epsilon: float | None
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    states: tuple[tuple[str, str], ...]
    operations: tuple[Operation, ...]

    def constants(self) -> dict[int, Operation]:
        """Number of a value -> the constant that it is."""
        return {op.outputs[0]: op for op in self.operations if op.constant is not None}


@dataclass(frozen=True)
class Asset:
    """An opened model.

    Args:
        graphs: by name.
        resources: where the bytes of large constants lie.
    """

    graphs: Mapping[str, Graph]
    resources: Resources

    def functions(self) -> dict[str, Graph]:
        """What an app can call."""
        return {name: graph for name, graph in self.graphs.items() if not graph.composite}

    def tensor(self, constant: Operation) -> Tensor:
        """Values of a constant; integers below 8 bits one per element.

        Raises:
            PlanishError: its type or its size is not what a tensor of that shape has.
        """
        shape, element = parsed(constant.types[0])
        assert constant.constant is not None
        if element not in TYPES:
            raise damaged(self.resources.path, f"has a constant of type {element!r}, which cannot be read")
        if "resource" not in constant.constant:
            found = np.frombuffer(base64.b64decode(constant.constant["data"]), constant.constant["dtype"])
            values = torch.from_numpy(found.copy()).to(TYPES[element][0])
            return (values.expand(torch.Size(shape).numel()) if len(values) == 1 else values).reshape(shape)
        return _unpacked(self.resources, constant.constant["resource"], shape, element)


def parsed(text: str) -> tuple[tuple[int, ...], str]:
    """("tensor<1x16xf32>") -> ((1, 16), "f32"); a dimension that is not fixed is -1."""
    *sizes, element = text.removeprefix("tensor<").removesuffix(">").partition(",")[0].split("x")
    return tuple(-1 if s == "?" else int(s) for s in sizes), element


def _unpacked(found: Resources, key: str, shape: tuple[int, ...], element: str) -> Tensor:
    dtype, bits = TYPES[element]
    data, count = found.read(key), torch.Size(shape).numel()
    if len(data) != (count * bits + 7) // 8:
        raise damaged(found.path, f"has {len(data)} bytes for a constant {list(shape)} of {element}")
    if bits >= 8:
        return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)
    # One behind the other, each with its lowest bit first, whatever the limits of bytes.
    stream = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[: count * bits].reshape(count, bits)
    codes = torch.from_numpy(np.packbits(stream, axis=1, bitorder="little")[:, 0]).reshape(shape)
    half = 1 << (bits - 1)
    return (codes ^ half).to(torch.int8) - half if element.startswith("si") else codes


def open_asset(path: Path) -> Asset:
    """Read a model's structure; its weights are read when they are asked for.

    Raises:
        PlanishError: it is not whole, coreai-core is missing, or its reader crashed.
    """
    return _opened(path, check(path))


def check(path: Path) -> str:
    """The hash of a model whose file is as it was written.

    Raises:
        PlanishError: a file is missing, cut off or changed.
    """
    try:
        stated = (path / HASH).read_bytes()
        with (path / PROGRAM).open("rb") as file:
            found = hashlib.file_digest(file, "sha256")
    except OSError as problem:
        raise damaged(path, f"cannot be read: {problem.strerror}") from problem
    if found.digest() != stated:
        raise damaged(
            path, f"was changed or cut off after it was written: {PROGRAM} has another hash than {HASH} states"
        )
    return found.hexdigest()


@lru_cache(maxsize=2)
def _opened(path: Path, _hash: str) -> Asset:
    found = resources(path / PROGRAM)
    told = _looked(path)
    return Asset({g["name"]: _graph(g) for g in told["graphs"]}, found)


def _looked(path: Path) -> dict[str, Any]:
    """Native code reads the file in a process of its own: what crashes there is an error here."""
    if reason := sdk.missing():
        raise PlanishError(f"a Core AI model cannot be read: {reason}", str(path), sdk.INSTALL)
    with tempfile.TemporaryDirectory(prefix="planish-look-") as scratch:
        out, script = Path(scratch, "out.json"), Path(__file__).with_name("look.py")
        command = [sys.executable, "-P", str(script), str(path), str(out)]
        try:
            done = subprocess.run(
                command,
                env=environment(1),
                capture_output=True,
                timeout=_SECONDS,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired as problem:
            raise damaged(path, f"was not read within {_SECONDS:g} s") from problem
        if done.returncode:
            reason = reason_of(done.returncode, done.stderr.decode(errors="replace"))
            raise damaged(path, f"cannot be read by coreai-core: {reason}")
        return dict(json.loads(out.read_text()))


def _graph(told: Mapping[str, Any]) -> Graph:
    ports = [((p["name"], p["type"]), p["state"]) for p in told["inputs"]]
    composite = told["composite"] or {}
    return Graph(
        told["name"],
        str(composite.get("name", "")),
        composite.get("eps"),
        tuple(port for port, state in ports if not state),
        tuple((p["name"], p["type"]) for p in told["outputs"]),
        tuple(port for port, state in ports if state),
        tuple(_operations(told["operations"])),
    )


def _operations(told: list[Mapping[str, Any]]) -> Iterator[Operation]:
    for op in told:
        yield Operation(
            op["op"],
            tuple(op["inputs"]),
            tuple(op["outputs"]),
            tuple(op["types"]),
            op["source"],
            op.get("callee", ""),
            op.get("constant"),
        )
