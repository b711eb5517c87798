"""What a .aimodel consists of. Where its operations run is decided on the device, and nothing here claims to know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch

from planish_targets.contract import Placed, Placement
from planish_targets.coreai.asset import PROGRAM, SUFFIX, TYPES, Asset, Graph, Operation, open_asset, parsed

SOURCE = "no statement: Core AI decides on the device (its debugger on a Mac shows it)"
_WHY = "Core AI decides on the device"


def placement(asset: Asset, modules: Mapping[str, Mapping[str, str]]) -> Placement:
    """Unknown for every operation.

    Args:
        modules: function -> name of a node in the file -> source module.
    """
    nodes = []
    functions = asset.functions()
    for name, graph in functions.items():
        prefix = f"{name}/" if len(functions) > 1 else ""
        for number, op in enumerate(graph.operations):
            if op.constant is None and op.op not in ("coreai.output", "coreai.create_token"):
                module = modules.get(name, {}).get(op.source, "")
                nodes.append(Placed(f"{prefix}{number}", called(asset, op), "unknown", "", _WHY, module))
    return Placement(SOURCE, tuple(nodes))


def called(asset: Asset, op: Operation) -> str:
    """Type of an operation; for a call of a composite, the composite's name."""
    return f"composite {asset.graphs[op.callee].composite}" if op.callee in asset.graphs else op.op


def describe(path: Path) -> dict[str, object] | None:
    """Operations, bytes by dtype and ports of a .aimodel; None for anything else."""
    if path.suffix != SUFFIX or not (path / PROGRAM).is_file():
        return None
    asset = open_asset(path)
    functions = asset.functions()
    first = next(iter(functions.values()))
    ops = Counter(called(asset, op) for g in functions.values() for op in g.operations if op.constant is None)
    more: dict[str, object] = {"functions": list(functions)} if len(functions) > 1 else {}
    if first.states:
        more["states"] = [_port(*port) for port in first.states]
    return {
        "format": "Core AI model (.aimodel)",
        "ops": dict(ops.most_common()),
        "dtypes": dict(_bytes(asset, functions).most_common()),
        "inputs": [_port(*port) for port in first.inputs],
        "outputs": [_port(*port) for port in first.outputs],
        **more,
        "bytes": sum(f.stat().st_size for f in path.rglob("*") if f.is_file()),
    }


def _bytes(asset: Asset, functions: Mapping[str, Graph]) -> Counter[str]:
    """Bytes of constants by dtype; what several functions read from one place counts once."""
    found, seen = Counter[str](), set[str]()
    for op in (op for graph in functions.values() for op in graph.operations):
        if op.constant is None:
            continue
        shape, element = parsed(op.types[0])
        key = op.constant.get("resource", "")
        if element in TYPES and key not in seen:
            dtype, bits = TYPES[element]
            name = f"{'u' if element.startswith('u') else ''}int{bits}" if bits < 8 else str(dtype)
            found[name.removeprefix("torch.")] += torch.Size(shape).numel() * bits // 8
        if key:
            seen.add(key)
    return found


def _port(name: str, text: str) -> dict[str, object]:
    shape, element = parsed(text)
    dtype = str(TYPES[element][0]).removeprefix("torch.") if element in TYPES else element
    return {"name": name, "shape": list(shape), "dtype": dtype}
