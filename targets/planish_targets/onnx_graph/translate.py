"""Program to ONNX graph. Weights stay names until the file is written."""

from __future__ import annotations

import io
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram

from planish_passes.errors import PlanishError
from planish_passes.program import Program, module_path, op_name

if TYPE_CHECKING:
    import onnx_ir as ir

MODULE, VALUE = "planish.module", "planish.value"  # metadata of ONNX nodes
SOURCE = "planish.source"  # program node of an ONNX node; in node.meta, which is not written to the file
_MARK = "planish_node"
_WORD = re.compile(r"\w+")
Translations = Mapping[Any, Callable[..., Any]]


def translate(program: Program, translations: Translations, opset: int) -> ir.Model:
    """Translate with torch's own exporter; composites that a target keeps go through `translations`.

    Args:
        program: only composites that `translations` has may be left in it.
        translations: torch operator -> function that emits ONNX.
        opset: ai.onnx version.

    Returns:
        A model whose initializers have names, shapes and types but no data.

    Raises:
        PlanishError: an operator has no ONNX form; names it and its source module.
    """
    import torch.onnx

    marked = program.copy()
    for node in marked.graph.nodes:
        node.meta["custom"] = {_MARK: node.name}  # the exporter renames nodes, but keeps this
        node.meta.setdefault("nn_module_stack", {"": ("", "torch.nn.Module")})  # it warns of nodes without one
    if _is_flat(program, translations):
        marked.exported.__class__ = _Flat
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                marked.exported,
                dynamo=True,
                opset_version=opset,
                optimize=False,
                verify=False,
                verbose=False,
                custom_translation_table=dict(translations),
            )
    except torch.onnx.errors.OnnxExporterError as problem:
        raise _refusal(program, problem) from problem
    assert exported is not None
    model: ir.Model = exported.model
    for value in model.graph.initializers.values():
        if value.name in program.weights:
            value.const_value = None
    _name_nodes(program, model, exported.exported_program)  # first: it goes by the exporter's names
    _name_ports(program, model)
    return model


class _Flat(ExportedProgram):
    """A program that has nothing to decompose; torch's exporter would spend most of its time on finding that out."""

    def run_decompositions(self, *_: Any, **__: Any) -> ExportedProgram:
        """The program as it is."""
        return self


# Operators that the exporter has a form of, for one floating type, without decomposing them or promoting types.
_PLAIN = frozenset(
    f"aten.{n}"
    for n in ("linear", "add", "mul", "reshape", "transpose", "slice", "select", "flatten", "sym_size", "layer_norm")
)


def _is_flat(program: Program, translations: Translations) -> bool:
    for node in program.graph.nodes:
        if node.op != "call_function" or node.target in translations or node.target is operator.getitem:
            continue
        values = [n.meta["val"] for n in (node, *node.all_input_nodes)]
        types = {v.dtype for v in values if isinstance(v, torch.Tensor)}
        if op_name(node) not in _PLAIN or len(types) > 1:
            return False
    return True


def _refusal(program: Program, problem: BaseException) -> PlanishError:
    text = str(problem)
    while problem.__cause__ is not None:
        problem = problem.__cause__
        text = f"{text}\n{problem}"
    at = next((n for n in program.graph.nodes if n.op == "call_function" and f"%{n.name} " in text), None)
    at = at or next((n for n in program.graph.nodes if n.op == "call_function" and str(n.target) in text), None)
    named = re.search(r"op='([\w.]+)'", text)  # after the exporter's own decomposition: maybe a part of our node's name
    if at is None and named:
        at = next((n for n in program.graph.nodes if n.op == "call_function" and named[1] in op_name(n)), None)
    operator = op_name(at) if at is not None else named[1] if named else "an operator"
    where = f"{operator} in module {(at is not None and module_path(at)) or '(top)'}, program {program.name!r}"
    return PlanishError(
        f"an operator has no ONNX form: {str(problem).strip().splitlines()[0]}",
        where,
        "the other targets may have one; drop this target, or report the model's config.json",
    )


def _name_ports(program: Program, model: ir.Model) -> None:
    graph = model.graph
    symbols: dict[str, str] = {}
    for port, value in zip(program.inputs, graph.inputs, strict=True):
        assert value.shape is not None
        symbols |= {str(d): a for d, a in zip(value.shape, port.shape, strict=True) if isinstance(a, str)}
    given = {p.name for p in (*program.inputs, *program.outputs)}
    ends = {id(v) for v in (*graph.inputs, *graph.outputs)}
    for value in (o for node in graph for o in node.outputs):
        if value.name in given and id(value) not in ends:
            value.name = f"{value.name}.inner"  # the exporter numbers values anew and may hit a port's name
    for ports, values in ((program.inputs, graph.inputs), (program.outputs, graph.outputs)):
        for port, value in zip(ports, values, strict=True):
            value.name = port.name
    _rename_dimensions(model, symbols)


def _rename_dimensions(model: ir.Model, symbols: dict[str, str]) -> None:
    import onnx_ir as ir

    nodes = (output for node in model.graph for output in node.outputs)
    for value in (*model.graph.inputs, *model.graph.outputs, *nodes):
        if value.shape is not None:
            dims = [d if isinstance(d, int) else _WORD.sub(_named(symbols), str(d)) for d in value.shape]
            value.shape = ir.Shape(dims)


def _named(symbols: Mapping[str, str]) -> Callable[[re.Match[str]], str]:
    return lambda word: symbols.get(word[0], word[0])


def _name_nodes(program: Program, model: ir.Model, exported: Any) -> None:
    """Each ONNX node remembers the source module it came from, and the program node whose value it yields, if any."""
    modules = {n.name: module_path(n) for n in program.graph.nodes}
    origin = {n.name: n.meta.get("custom", {}).get(_MARK) for n in exported.graph.nodes if n.op == "call_function"}
    final = {old: new for new, old in origin.items() if old is not None}  # one node may have become several
    for node in model.graph:
        source = origin.get(node.metadata_props.get("pkg.torch.onnx.fx_node", "").split(" ", 1)[0].lstrip("%"))
        node.metadata_props.clear()
        if source in modules:
            node.metadata_props[MODULE] = modules[source]
            node.meta[SOURCE] = source
            if any(final[source] == o.name for o in node.outputs):
                node.metadata_props[VALUE] = source
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
