"""Program to .mlpackage: emit MIL, let coremltools' passes narrow and fuse it, save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import fx

from planish_passes.canonicalise import Canonicalise
from planish_passes.errors import PlanishError
from planish_passes.fold import FoldConstants
from planish_passes.infra import run_passes
from planish_passes.program import Port, Program, module_path
from planish_passes.specialise import Specialise
from planish_targets.coreml import sdk
from planish_targets.coreml.audit import audited, indices, large_values
from planish_targets.coreml.emit import Emitter, State
from planish_targets.coreml.emit.emitter import mil_type
from planish_targets.coreml.emit.naming import COMPRESSED, safe_name
from planish_targets.coreml.positions import cut_to_context

# coremltools' standard passes that are left out, each with its reason
SKIPPED = frozenset(
    {
        "common::fuse_conv_batchnorm",  # folded weights would be rounded again and differ from the program's
        "common::fuse_conv_scale",  # likewise
        "common::const_deduplication",  # equal weights of two layers would lose one of their names
        "common::divide_to_multiply",  # fp16 has 30 and not 1 / 30
        "common::guard_negative_gather_indices",  # three operations for each lookup; emitters do it where needed
    }
)
REPLACED = {"common::add_fp16_cast": sdk.NARROW}


NARROWED = "_cast_fp16"  # what coremltools' fp16 pass adds to names
_SHOWN = ("linear", "matmul", "conv", "gather")
# Names of the functions of a language model's package; both share states and weights
DECODE, PREFILL = "decode", "prefill"


@dataclass(frozen=True)
class Written:
    """What lowering tells.

    Args:
        weights: MIL name -> weight name of every quantised weight.
        notes: for people.
        functions: function of the package -> tokens that one call takes; empty when there is only "main".
        values: MIL name -> node whose result it is, where the passes left it in one piece; empty with functions.
    """

    weights: dict[str, str]
    notes: tuple[str, ...]
    functions: dict[str, int] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)


def lower(program: Program, package: Path, chunks: Sequence[int] = ()) -> Written:
    """Write `package`.

    Args:
        program: linear_q, embedding_q and attention kept; fixed shapes, or, with caches, an open "sequence".
        package: path of the .mlpackage to write.
        chunks: numbers of tokens for which a program with an open "sequence" becomes a function.

    Raises:
        PlanishError: an operator has no form in Core ML, a shape is dynamic, or coremltools is missing.
    """
    kit = sdk.load()
    with sdk.quiet(), torch.no_grad():
        mil_program, arrays = kit.mil.Program(), dict[str, Any]()
        program = cut_to_context(program)
        functions = _functions(program, chunks)
        large = large_values(program)
        emitters = []
        for name, fixed in functions.items():
            shared = frozenset(program.weights) if len(functions) > 1 else frozenset()
            wide = frozenset(large) | indices(fixed)
            emitters.append(Emitter(fixed, kit, arrays=arrays, shared=shared, large=wide))
            mil_program.add_function(name, _build(fixed, emitters[-1], kit))
        if len(functions) > 1:
            mil_program.default_function_name = DECODE
            mil_program.export_as_multifunction = True
        _convert(mil_program, package, kit, frozenset().union(*(e.mb.kept for e in emitters)))
    notes = dict.fromkeys(note for e in emitters for note in e.notes)
    sizes = {name: _tokens(fixed) for name, fixed in functions.items()} if program.states else {}
    found = _found(mil_program, emitters[0].quantized)
    values = {} if program.states else _values(mil_program, program)
    return Written(found, (*notes, *audited(program, large)), sizes, values)


def _functions(program: Program, chunks: Sequence[int]) -> dict[str, Program]:
    """The program for each number of tokens that one call may take.

    Functions of fixed shapes and not one with flexible ones: those are said to lose the Neural Engine
    (github.com/apple/coremltools/issues/1764), and functions share weights in the file and states in memory
    (github.com/apple/coremltools/pull/2686). What it costs: memory for weights was reported to grow with the number of
    loaded functions (github.com/apple/coremltools/issues/2351).
    """
    if set(program.axes) != {"sequence"} or not program.states:
        return {"main": program}
    sizes = sorted({min(n, program.axes["sequence"][1]) for n in chunks})
    names = [DECODE if n == 1 else PREFILL if len(sizes) == 2 else f"{PREFILL}_{n}" for n in sizes]
    return {
        name: run_passes(program, (Specialise({"sequence": n}), Canonicalise(), FoldConstants())).program
        for name, n in zip(names, sizes, strict=True)
    }


def _tokens(program: Program) -> int:
    size = next(p for p in program.inputs if p.name == "input_ids").shape[1]
    assert isinstance(size, int)
    return size


def _convert(mil_program: Any, package: Path, kit: sdk.Sdk, wide: frozenset[str]) -> None:
    pipeline = kit.ct.PassPipeline.DEFAULT
    pipeline.passes = [*(REPLACED.get(name, name) for name in pipeline.passes if name not in SKIPPED), sdk.SHARE]
    pipeline.set_options(sdk.NARROW, {"wide": wide})
    kit.ct.convert(
        mil_program,
        source="milinternal",
        convert_to="mlprogram",
        minimum_deployment_target=kit.ct.target.iOS18,
        compute_precision=kit.ct.precision.FLOAT16,
        pass_pipeline=pipeline,
        skip_model_load=True,
        package_dir=str(package),
    )


def _build(program: Program, emitter: Emitter, kit: sdk.Sdk) -> Any:
    if program.axes:
        raise PlanishError(
            f"dimensions {', '.join(program.axes)} are dynamic",
            f"program {program.name!r}",
            "fix them: pass sizes to for_target",
        )
    inner = _states(program)
    ports = {safe_name(p.name): _placeholder(p, p.name in inner, kit) for p in program.inputs}
    weights = program.weight_names()
    with kit.mil.Function(ports, opset_version=kit.ct.target.iOS18) as function:
        given = iter(program.inputs)
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name not in weights:
                port = next(given)
                value = function.inputs[safe_name(port.name)]
                if port.name in inner:
                    emitter.states[node.name] = State(value, inner[port.name])
                else:
                    emitter.bind(node, emitter.cast(value, port.dtype))
            elif node.op == "call_function":
                emitter.emit(node)
        _check_states(emitter)
        function.set_outputs(_outputs(program, emitter, kit))
    return function


def _placeholder(port: Port, state: bool, kit: sdk.Sdk) -> Any:
    if state:
        return kit.mb.state_tensor_placeholder(shape=port.shape, dtype=kit.types.fp16)
    return kit.mb.placeholder(shape=port.shape, dtype=_port_type(port, kit), name=port.name)


def _states(program: Program) -> dict[str, str]:
    """Input -> node that the program returns as its next value."""
    returned: list[fx.Node] = list(program.graph.output_node().args[0])  # type: ignore[arg-type]
    results = {p.name: n.name for p, n in zip(program.outputs, returned, strict=True)}
    return {i: results[o] for o, i in program.states}


def _check_states(emitter: Emitter) -> None:
    left = [state.output for state in emitter.states.values() if not state.written]
    if left:
        raise PlanishError(
            "Core ML keeps key/value caches only, each written at the slots of the new tokens",
            f"states computed in another way: {', '.join(left[:3])}",
            "compile for onnxruntime, whose states go in and out",
        )


def _port_type(port: Port, kit: sdk.Sdk) -> Any:
    # Core ML takes no bool and no int64 inputs
    return kit.types.fp32 if mil_type(port.dtype) == "fp32" else kit.types.int32


def _outputs(program: Program, emitter: Emitter, kit: sdk.Sdk) -> list[Any]:
    returned: list[fx.Node] = list(program.graph.output_node().args[0])  # type: ignore[arg-type]
    results, inner = [], {o for o, _ in program.states}
    for node, port in zip(returned, program.outputs, strict=True):
        if port.name in inner:
            continue
        emitter.mb.start(node.name)
        value = emitter.value(node)
        if mil_type(port.dtype) == "bool":
            value = emitter.cast(value, torch.int32)
        results.append(kit.mb.identity(x=value, name=port.name))
    return results


def _found(mil_program: Any, quantized: dict[str, str]) -> dict[str, str]:
    """Names in the file of the quantised weights: the passes rename what they narrow."""
    sanitised = {safe_name(name): weight for name, weight in quantized.items()}
    by_function = []
    for function in mil_program.functions.values():
        found = {}
        for op in function.operations:
            if op.op_type in COMPRESSED:
                name = op.outputs[0].name
                weight = sanitised.get(name.removesuffix(NARROWED))
                if weight is not None:
                    found[name] = weight
        by_function.append(found)
    missing = sorted(set(quantized.values()) - set(by_function[0].values()))
    if missing or any(found != by_function[0] for found in by_function):
        raise PlanishError(
            "quantised weights are not in the package as integers",
            ", ".join(missing) or "the functions of the package have different ones",
            "a coremltools pass rewrote them; report coremltools' version",
        )
    return by_function[0]


def _values(mil_program: Any, program: Program) -> dict[str, str]:
    """Which values of the package are results of nodes: those of the name and the shape that their emitter gave."""
    # Norms have an fp16 epsilon (see attributes.py); through the rest, transposes may have moved.
    shapes = {
        safe_name(f"{n.name}__"): (n.name, tuple(n.meta["val"].shape))
        for n in program.graph.nodes
        if n.op == "call_function" and isinstance(n.meta.get("val"), torch.Tensor)
    }
    found = {}
    for op in mil_program.functions["main"].operations:
        for var in op.outputs:
            owner, _, operation = var.name.removesuffix(NARROWED).rpartition("__")
            name, shape = shapes.get(f"{owner}__", ("", ()))
            if name and operation == op.op_type and tuple(var.shape) == shape and operation in _SHOWN:
                found[var.name] = name
    return found


def modules(program: Program) -> dict[str, str]:
    """Node name -> source module, for reports: MIL names start with the node's name."""
    return {n.name: module_path(n) for n in program.graph.nodes if n.op == "call_function" and module_path(n)}
