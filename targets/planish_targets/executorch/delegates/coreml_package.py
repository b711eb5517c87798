"""The payload of executorch's Core ML delegate: a folder in one piece of bytes, with a .mlpackage in it.

Layout: executorch's backends/apple/coreml/runtime/inmemoryfs: contents of the files, behind them a table of nodes as
JSON, written from the end to the beginning.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from planish_passes.errors import PlanishError
from planish_targets.attributes import Number, Step
from planish_targets.coreml import attributes, mil
from planish_targets.executorch.delegates.delegate import Operation, Payload, Steps
from planish_targets.executorch.pte import PteFile

_FILE, _FOLDER = 0, 1
_TABLE = 1 << 16  # bytes of the table to try first
_PACKAGE, _METADATA = "model.mlpackage", "metadata.json"


@contextlib.contextmanager
def unpacked(file: PteFile, index: int) -> Iterator[Path]:
    """Delegate `index` of a file as a folder with model.mlpackage and metadata.json, for as long as this lasts.

    Raises:
        PlanishError: its payload is not whole.
    """
    payload, where = file.payload(index), f"{file.path}, delegate {index}"
    contents = _contents(payload, where)
    wanted = {name: data for name, data in contents.items() if name.split("/")[0] in (_PACKAGE, _METADATA)}
    if _METADATA not in wanted or f"{_PACKAGE}/Manifest.json" not in wanted:
        raise _broken("holds no model.mlpackage with its metadata.json", where)
    with tempfile.TemporaryDirectory(prefix="planish-pte-") as scratch:
        for name, (begin, size) in wanted.items():
            path = Path(scratch, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(payload[begin : begin + size])
        yield Path(scratch)


def _contents(payload: bytes, where: str) -> dict[str, tuple[int, int]]:
    """Path inside the payload's folder -> (offset, size)."""
    nodes = _table(payload, where)
    found: dict[str, tuple[int, int]] = {}

    def walk(number: int, path: tuple[str, ...]) -> None:
        node = nodes[number]
        if len(path) > len(nodes):
            raise ValueError("folders in a circle")
        if node["kind"] == _FOLDER:
            for name, child in node["children"].items():
                if name in ("", ".", "..") or set(name) & set("/\\\0"):
                    raise ValueError(f"the name {name!r}")
                walk(child, (*path, name))
            return
        begin, size = int(node["dataRegion"]["offset"]), int(node["dataRegion"]["size"])
        if not 0 <= begin <= begin + size <= len(payload):
            raise ValueError(f"{'/'.join(path)} lies outside")
        found["/".join(path)] = (begin, size)

    try:
        walk(len(nodes) - 1, ())
    except (LookupError, TypeError, ValueError, AttributeError) as problem:
        raise _broken(f"has a damaged table of files ({problem})", where) from problem
    return found


def _table(payload: bytes, where: str) -> list[Any]:
    size = _TABLE
    while True:
        text = payload[: -size - 1 : -1].decode("latin-1")
        try:
            nodes = json.JSONDecoder().raw_decode(text)[0]["nodes"]
        except (ValueError, LookupError, TypeError) as problem:
            if size < len(payload) and text.startswith("{"):
                size *= 4
                continue
            raise _broken("ends without a table of files: it is cut off, or another format", where) from problem
        if not isinstance(nodes, list) or not nodes:
            raise _broken("has an empty table of files", where)
        return nodes


def _broken(what: str, where: str) -> PlanishError:
    return PlanishError(f"the Core ML payload {what}", where, "compile the model again, or copy the file again")


def payload(file: PteFile, index: int) -> Payload:
    """Its operations, bytes of constants by dtype, and what contradicts itself."""
    with unpacked(file, index) as folder:
        program = mil.load(folder / _PACKAGE)
        made = list(program.operations(constants=True))
        sizes: Counter[str] = Counter()
        for operation in made:
            for output in operation.outputs if operation.type == "const" else ():
                if output.shape is not None and output.dtype != "string":
                    count = torch.Size(d or 0 for d in output.shape).numel()
                    bits = int("".join(c for c in output.dtype if c.isdigit()) or 8)
                    sizes[output.dtype.replace("fp", "float")] += count * bits // 8
        problems = tuple(_ports(file, index, program, folder))
    operations = (Operation(o.type, f"{o.output}:{o.type}") for o in made if o.type != "const")
    return Payload(tuple(operations), dict(sizes), problems)


def _ports(file: PteFile, index: int, program: mil.MilProgram, folder: Path) -> Iterator[str]:
    told = names(folder)
    for kind, ports in (("inputNames", program.inputs), ("outputNames", program.outputs)):
        if set(told.get(kind, ())) != {p.name for p in ports}:
            yield f"metadata.json names other {kind.removesuffix('Names')}s than the package has"
    count = sum(len(told.get(kind, ())) for kind in ("inputNames", "outputNames"))
    for instruction in file.plan.chains[0].instructions:
        call = instruction.instr_args
        if type(call).__name__ == "DelegateCall" and call.delegate_index == index and len(call.args) != count:
            yield f"the plan hands over {len(call.args)} values, the package has {count} inputs and outputs"


def names(folder: Path) -> Mapping[str, Any]:
    """`inputNames` and `outputNames`, in the order in which the plan hands values over."""
    told = json.loads((folder / _METADATA).read_text("utf-8"))
    return told if isinstance(told, dict) else {}


def package_steps(file: PteFile, index: int, modules: Mapping[str, str]) -> Steps:
    """The payload for finding epsilons; keys are MIL names."""
    with unpacked(file, index) as folder:
        found, number = attributes.steps_of(folder / _PACKAGE, lambda op: modules.get(f"{op.output}:{op.type}", ""))
        told = names(folder)
        numbers: dict[Hashable, Number] = {}
        for key in {k for s in found for k in s.inputs}:
            value = number(key)
            if value is not None:
                numbers[key] = value
    return Steps(tuple[Step, ...](found), numbers, (*told["inputNames"], *told["outputNames"]))
