"""What a .aimodel holds, as JSON: a script for a process of its own, because native code reads the file.

`python -P look.py MODEL.aimodel OUT.json`; nothing here imports torch, which would take longer than the reading.

OUT: {"graphs": [{"name", "composite": {"name", "eps"?} | null, "inputs": [{"name", "type", "state"}],
"outputs": [{"name", "type"}], "operations": [...]}]}. An operation is {"op", "inputs": [id], "outputs": [id],
"types": [text], "source": node name, "callee"?, "constant"?}; a constant is {"resource": key} where its bytes lie in
the file under a key, else {"dtype", "shape", "data": base64} (one element when all are equal).
"""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SOURCES = re.compile(r'identifiers = \["([^"]*)"')
_NAMED = re.compile(r'coreai\.name = "((?:[^"\\]|\\.)*)"')
_EPS = re.compile(r"\beps = (\S+) : f32")
_RESOURCE = re.compile(r"dense_resource<\"?([^>\"]+)\"?>")


def look(path: Path) -> dict[str, Any]:
    """The model's graphs; see the module."""
    from coreai.authoring import AIModelAsset

    module = AIModelAsset.load(path).program._module._mlir_module
    return {"graphs": [_graph(op.operation) for op in module.body.operations if op.operation.name == "coreai.graph"]}


def _graph(graph: Any) -> dict[str, Any]:
    attributes = {named.name: named.attr for named in graph.attributes}
    function = attributes["function_type"].value
    given, returned = _names(attributes.get("arg_attrs")), _names(attributes.get("res_attrs"))
    inputs, outputs = [str(t) for t in function.inputs], [str(t) for t in function.results]
    ids: dict[Any, int] = {}
    return {
        "name": attributes["sym_name"].value,
        "composite": _composite(str(attributes.get("composite_decl", ""))),
        "inputs": [
            {"name": n, "type": _tensor(t), "state": t.startswith("!coreai.handle")}
            for n, t in zip(_padded(given, inputs), inputs, strict=True)
        ],
        "outputs": [
            {"name": n, "type": t}
            for n, t in zip(_padded(returned, outputs), outputs, strict=True)
            if t != "!coreai.token"
        ],
        "operations": [_operation(op, ids) for op in _walk(graph)],
    }


def _names(attributes: Any) -> list[str]:
    found = [_NAMED.search(str(one)) for one in attributes] if attributes is not None else []
    return [match.group(1) if match else "" for match in found]


def _padded(names: list[str], types: list[str]) -> list[str]:
    return names + [""] * (len(types) - len(names))


def _tensor(text: str) -> str:
    return text.removeprefix("!coreai.handle<").removesuffix(">") if text.startswith("!coreai.handle<") else text


def _composite(text: str) -> dict[str, Any] | None:
    if '"' not in text:
        return None
    epsilon = _EPS.search(text)
    return {"name": text.split('"')[1], **({"eps": float(epsilon.group(1))} if epsilon else {})}


def _walk(operation: Any) -> Iterator[Any]:
    for region in operation.regions:
        for block in region.blocks:
            for op in block.operations:
                yield op.operation
                yield from _walk(op.operation)


def _operation(op: Any, ids: dict[Any, int]) -> dict[str, Any]:
    sources = _SOURCES.findall(str(op.location))
    made: dict[str, Any] = {
        "op": op.name,
        "inputs": [ids.setdefault(v, len(ids)) for v in op.operands],
        "outputs": [ids.setdefault(v, len(ids)) for v in op.results],
        "types": [str(v.type) for v in op.results],
        "source": sources[-1] if sources else "",  # the last one is its own, others were merged into it
    }
    if op.name == "coreai.invoke":
        made["callee"] = str(op.attributes["callee"]).split("@")[1].split(">")[0]
    if op.name == "coreai.constant":
        made["constant"] = _constant(op.attributes["value"])
    return made


def _constant(value: Any) -> dict[str, Any]:
    import numpy as np
    from coreai._compiler.ir import DenseElementsAttr

    if not isinstance(value, DenseElementsAttr):
        key = _RESOURCE.match(str(value)[:200])
        return {"resource": key.group(1) if key else ""}
    element = str(value.type.element_type)
    if value.is_splat:
        array = np.array([value.get_splat_value().value], _numpy(element))
    elif element in ("f32", "f16", "i1") or element[2:] in ("8", "16", "32", "64"):
        array = np.array(value)
    else:
        return {"resource": ""}  # asking for an array of these types aborts the process
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "data": data}


def _numpy(element: str) -> str:
    if element.startswith(("si", "ui")):
        return f"{'u' if element[0] == 'u' else ''}int{max(8, int(element[2:]))}"
    return "bool" if element == "i1" else "float64"


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(look(Path(sys.argv[1]))))
