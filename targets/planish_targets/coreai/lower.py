"""Program to .aimodel: coreai-torch converts torch's own operators, planish makes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from planish_passes.errors import PlanishError
from planish_passes.program import Port, Program, module_path, op_name
from planish_targets.coreai import sdk
from planish_targets.coreai.compress import KEPT, name_palettes, with_compressed
from planish_targets.coreai.states import functions, mutated
from planish_targets.quiet import quiet

# What the converter raises at programs that it does not take; anything else is a defect and keeps its traceback.
_CONVERSION_ERRORS = (ValueError, RuntimeError, TypeError, NotImplementedError, AssertionError, KeyError, IndexError)


@dataclass(frozen=True)
class Written:
    """What lowering tells about the model that it wrote.

    Args:
        functions: function -> tokens of one call; 0 without caches.
        modules: function -> name of a node in the file -> source module.
        states: (name, shape) of what lives from call to call; the same in all functions.
    """

    functions: dict[str, int]
    modules: dict[str, dict[str, str]]
    states: tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Shared:
    """Weights in memory, once for all functions.

    Args:
        names: of weights that are the same in all functions.
        read_already: those of them that were needed so far.
    """

    names: frozenset[str]
    read_already: dict[str, Tensor]

    def read(self, program: Program, name: str) -> Tensor:
        """A weight of one function's program."""
        if name not in self.names:
            return program.weights.read(name).contiguous()
        if name not in self.read_already:
            self.read_already[name] = program.weights.read(name).contiguous()
        return self.read_already[name]


def write(program: Program, to: Path, chunks: Sequence[int]) -> Written:
    """Convert and save.

    Args:
        program: in the form that the target's passes make: fixed shapes, or, with caches, an open "sequence".
        to: the .aimodel to write.
        chunks: numbers of tokens for which a program with an open "sequence" becomes a function.

    Raises:
        PlanishError: an operator has no form here (named with its module), or coreai-torch is missing.
    """
    kit = sdk.load()
    _check(program)
    fixed = functions(program, chunks)
    # Functions share weights, not the constants that each folds from its own sizes: these have equal names.
    shared = Shared(frozenset(program.weights), {})
    modules: dict[str, dict[str, str]] = {}
    with quiet(), torch.no_grad():
        # DEBUG writes where an operation comes from; of that, only names of nodes are left in these programs.
        converter = kit.converter(mode=kit.converter.Mode.DEBUG)
        for name, one in fixed.items():
            exported = _exported(one, kit, shared)
            modules[name] = {n.name: _stack_path(n) for n in exported.graph.nodes if n.op == "call_function"}
            _stage(converter, exported, one, name)
        try:
            converted = converter.to_coreai()
        except _CONVERSION_ERRORS as problem:
            raise _refusal(program.graph, problem) from problem
        converted.save_asset(to)
    inner = {i for _, i in program.states}
    sizes = {name: _tokens(one) if program.states else 0 for name, one in fixed.items()}
    states = tuple((p.name, tuple(int(d) for d in p.shape)) for p in program.inputs if p.name in inner)
    return Written(sizes, modules, states)


def _check(program: Program) -> None:
    for node in program.graph.nodes:
        if node.op == "call_function" and op_name(node).startswith("planish.") and op_name(node) not in KEPT:
            raise _no_form(f"{op_name(node)} with these options", module_path(node))


def _exported(program: Program, kit: sdk.Sdk, shared: Shared) -> ExportedProgram:
    """In the converter's operators, with weights."""
    program = with_compressed(program, kit.ops)
    exported = program.copy().exported
    for name in list(exported.state_dict):
        exported._state_dict[name] = shared.read(program, name)
    exported._example_inputs = None
    for node in exported.graph.nodes:
        path = module_path(node)
        node.meta["nn_module_stack"] = {path: (path, "torch.nn.Module")} if path else {}
    try:
        exported = exported.run_decompositions(kit.table)
    except _CONVERSION_ERRORS as problem:
        raise _refusal(program.graph, problem) from problem
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of the machine that compiled
    name_palettes(exported)
    _give_states(exported, program)
    return exported


def _give_states(exported: ExportedProgram, program: Program) -> None:
    signature = exported.graph_signature
    given = dict(zip((p.name for p in program.inputs), signature.user_inputs, strict=True))
    returned = dict(zip((p.name for p in program.outputs), signature.user_outputs, strict=True))
    states = {str(given[i]): str(returned[o]) for o, i in program.states}
    if len(set(states.values())) < len(states) or set(states) & set(states.values()):
        raise PlanishError(
            "a cache is returned as it came, or as another one",
            f"program {program.name!r}",
            "compile for onnxruntime, whose states go in and out",
        )
    mutated(exported, states)


def _stage(converter: Any, exported: ExportedProgram, program: Program, name: str) -> None:
    inner, outer = {i for _, i in program.states}, {o for o, _ in program.states}
    try:
        converter.add_exported_program(
            exported,
            input_names=[p.name for p in program.inputs if p.name not in inner],
            output_names=[p.name for p in program.outputs if p.name not in outer],
            state_names=[p.name for p in program.inputs if p.name in inner],
            entrypoint_name=name,
        )
    except _CONVERSION_ERRORS as problem:
        raise _refusal(exported.graph, problem) from problem


def _tokens(program: Program) -> int:
    port: Port = next(p for p in program.inputs if p.name == "input_ids")
    assert isinstance(port.shape[1], int)
    return port.shape[1]


def _stack_path(node: fx.Node) -> str:
    stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
    return str(next(reversed(stack.values()))[0]) if stack else ""


def _refusal(graph: fx.Graph, problem: Exception) -> PlanishError:
    """What the converter says, with the operator it is about and that operator's module, as far as they can be told."""
    text = " ".join(str(problem).split())
    for operator in re.findall(r"aten(?:::|\.)(\w+)", text):
        for node in graph.nodes:
            if node.op == "call_function" and op_name(node) == f"aten.{operator}":
                return _no_form(f"aten.{operator} ({text[:200]})", _stack_path(node) or module_path(node))
    return PlanishError(
        f"coreai-torch cannot convert this program: {type(problem).__name__}: {text[:300]}",
        "TorchConverter",
        "choose another target for this model, or report it with the model's config.json",
    )


def _no_form(operator: str, module: str) -> PlanishError:
    return PlanishError(
        f"Core AI has no form for {operator}",
        f"module {module or '(unknown)'}",
        "choose another target for this model, or report the operator with the model's config.json",
    )
