"""The kernels that the DirectML execution provider registers, and the operator signatures that select one of them.

The table is data read from the shipped library (sources and versions are kept in `kernels.json`). A registered kernel
is necessary, not sufficient: support queries and argument checks are code, not table entries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

VERSION = "1.24.4"
MAX_OPSET = 21
INTERNAL_DOMAIN = "com.microsoft.dml"


@dataclass(frozen=True)
class Kernel:
    """One registered kernel.

    Args:
        types: type parameter -> admitted types (`float`, `int64`, `seq(float)`); None admits every type.
        cpu_inputs: indices of the inputs that the kernel reads on the host.
        support_query: True when code may refuse a node that the table admits.
        source: key of `sources` in kernels.json.
    """

    domain: str
    op: str
    since_version: int
    types: Mapping[str, frozenset[str] | None]
    cpu_inputs: frozenset[int]
    support_query: bool
    source: str


@dataclass(frozen=True)
class Signature:
    """Type parameters (or fixed types) of an operator's inputs and outputs, at one schema version.

    Args:
        since_version: version that introduced the schema.
        inputs: one name per formal input; the last one repeats when `variadic`.
        outputs: one name per formal output.
        fixed: type parameters that admit exactly one type -> that type.
        variadic: the last formal input repeats with one common type.
        mixed: the last formal input repeats, each with a type of its own.
        is_function: the schema has a body of simpler operators that a runtime may inline.
    """

    since_version: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    fixed: Mapping[str, str]
    variadic: bool = False
    mixed: bool = False
    is_function: bool = False

    def input(self, index: int) -> str | None:
        """Type parameter of the input at `index`, None when it has no fixed relation to the others."""
        last = len(self.inputs) - 1
        if self.mixed and index >= last:
            return None
        if index <= last:
            return self.inputs[index]
        return self.inputs[last] if self.variadic else None

    def output(self, index: int) -> str | None:
        """Type parameter of the output at `index`, None past the end."""
        return self.outputs[index] if index < len(self.outputs) else None


@cache
def _table() -> dict[str, Any]:
    text = files("planish_targets.directml").joinpath("kernels.json").read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


@cache
def kernels() -> Mapping[tuple[str, str], tuple[Kernel, ...]]:
    """All kernels by (domain, operator); the default domain is spelled `ai.onnx`."""
    table = _table()
    sets: list[frozenset[str] | None] = [None if s == "all" else frozenset(s) for s in table["type_sets"]]
    found: dict[tuple[str, str], list[Kernel]] = {}
    for domain, op, since, types, cpu_inputs, query, source in table["kernels"]:
        admitted = {parameter: sets[index] for parameter, index in types.items()}
        kernel = Kernel(domain, op, since, admitted, frozenset(cpu_inputs), query, source)
        found.setdefault((domain, op), []).append(kernel)
    return {key: tuple(entries) for key, entries in found.items()}


def kernel(domain: str, op: str, since_version: int) -> Kernel | None:
    """The kernel registered for exactly this schema version; no DirectML kernel covers a range of versions."""
    return next((k for k in kernels().get((domain, op), ()) if k.since_version == since_version), None)


@cache
def signature(domain: str, op: str, opset: int) -> Signature | None:
    """The signature in force at `opset` of `domain`; None for operators that neither onnx nor the table describes."""
    if domain == "ai.onnx" and (found := _onnx_signature(op, opset)):
        return found
    # ONNX Runtime owns these operators: version 1 of com.microsoft, and two norms that it adds to ai.onnx.
    entry = _table()["signatures"].get(f"{domain}::{op}")
    return Signature(1, tuple(entry[0]), tuple(entry[1]), {}) if entry else None


def _onnx_signature(op: str, opset: int) -> Signature | None:
    from onnx import defs

    try:
        schema: Any = defs.get_schema(op, opset, "")
    except defs.SchemaError:
        return None
    variadic = defs.OpSchema.FormalParameterOption.Variadic
    last = schema.inputs[-1] if schema.inputs else None
    repeats = last is not None and last.option == variadic
    return Signature(
        since_version=schema.since_version,
        inputs=tuple(bare(i.type_str) for i in schema.inputs),
        outputs=tuple(bare(o.type_str) for o in schema.outputs),
        fixed={c.type_param_str: bare(t) for c in schema.type_constraints for t in _only(c.allowed_type_strs)},
        variadic=repeats,
        mixed=last is not None and repeats and not last.is_homogeneous,
        is_function=schema.has_function or schema.has_context_dependent_function,
    )


def _only(types: Any) -> list[str]:
    return list(types) if len(types) == 1 else []


def bare(name: str) -> str:
    """`tensor(float)` -> `float`, `seq(tensor(float))` -> `seq(float)`; other names unchanged."""
    start = name.find("tensor(")
    if start < 0:
        return name
    end = name.index(")", start)
    return name[:start] + name[start + len("tensor(") : end] + name[end + 1 :]
