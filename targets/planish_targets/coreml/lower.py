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
from planish_targets.contract import Wishes
from planish_targets.coreml import sdk, versions
from planish_targets.coreml.audit import audited, indices, large_values
from planish_targets.coreml.emit import Emitter, State
from planish_targets.coreml.emit.channels_first import ChannelsFirst, pays
from planish_targets.coreml.emit.emitter import mil_type
from planish_targets.coreml.emit.naming import COMPRESSED, safe_name
from planish_targets.coreml.emit.sizes import Size, shape_of
from planish_targets.coreml.flexible import demand, flexible
from planish_targets.coreml.masks import Mask, masks
from planish_targets.coreml.positions import cut_to_context
from planish_targets.coreml.stable import stabilise

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
NO_WISHES = Wishes()
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
        masks: causal masks that calls must give, beside the program's inputs.
    """

    weights: dict[str, str]
    notes: tuple[str, ...]
    functions: dict[str, int] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    masks: tuple[Mask, ...] = ()


def lower(program: Program, package: Path, chunks: Sequence[int] = (), wishes: Wishes = NO_WISHES) -> Written:
    """Write `package`.

    Args:
        program: linear_q, embedding_q and attention kept; fixed shapes, or an open "sequence".
        package: path of the .mlpackage to write.
        chunks: numbers of tokens for which a program with caches and an open "sequence" becomes a function.
        wishes: the oldest version that opens the package, lengths that it takes, forms for the Neural Engine.

    Raises:
        PlanishError: an operator has no form in Core ML or in that version, a shape is dynamic, or coremltools is
            missing.
    """
    ios = wishes.minimum_ios or versions.DEFAULT
    versions.demand(program, ios, len(wishes.lengths) > 1)
    demand(program, wishes.lengths)
    kit = sdk.load(ios)
    with sdk.quiet(), torch.no_grad():
        mil_program, arrays = kit.mil.Program(), dict[str, Any]()
        program = cut_to_context(program)
        functions = _functions(program, chunks)
        large = large_values(program)
        emitters = []
        for name, fixed in functions.items():
            shared = frozenset(program.weights) if len(functions) > 1 else frozenset()
            wide = frozenset(large) | indices(fixed)
            function, emitter = _built(fixed, kit, arrays, shared, wide, wishes.ane)
            emitters.append(emitter)
            mil_program.add_function(name, function)
        if len(functions) > 1:
            mil_program.default_function_name = DECODE
            mil_program.export_as_multifunction = True
        ports = [] if program.states else flexible(program, wishes.lengths, kit)
        _convert(mil_program, package, kit, frozenset().union(*(e.mb.kept for e in emitters)), ports)
    stabilise(package)
    notes = dict.fromkeys(note for e in emitters for note in e.notes)
    sizes = {name: _tokens(fixed) for name, fixed in functions.items()} if program.states else {}
    found = _found(mil_program, emitters[0].weights.quantized)
    values = {} if program.states else _values(mil_program, program)
    given = masks(program) if wishes.ane else ()
    return Written(found, (*notes, *audited(program, large)), sizes, values, given)


def _built(
    program: Program, kit: sdk.Sdk, arrays: dict[str, Any], shared: frozenset[str], wide: frozenset[str], ane: bool
) -> tuple[Any, Emitter]:
    """The function, and what emitted it: with channels first where that is asked for and moves less than it saves."""

    def build(turned: bool) -> tuple[Any, Emitter]:
        emitter = Emitter(program, kit, arrays=arrays, shared=shared, large=wide)
        emitter.ane = ane
        emitter.layout = ChannelsFirst(emitter) if turned else None
        return _build(program, emitter, kit), emitter

    if not ane or program.states:
        return build(turned=False)
    function, emitter = build(turned=True)
    assert isinstance(emitter.layout, ChannelsFirst)
    said = f"{emitter.layout.convolutions} linears as 1x1 convolutions need {emitter.layout.turns} transposes"
    if pays(emitter.layout):
        emitter.note(f"channels first: {said}")
        return function, emitter
    had = emitter.layout.convolutions
    function, emitter = build(turned=False)
    if had:
        emitter.note(f"not channels first: {said}")
    return function, emitter


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


def _convert(mil_program: Any, package: Path, kit: sdk.Sdk, wide: frozenset[str], ports: list[Any]) -> None:
    pipeline = kit.ct.PassPipeline.DEFAULT
    pipeline.passes = [*(REPLACED.get(name, name) for name in pipeline.passes if name not in SKIPPED), sdk.SHARE]
    pipeline.set_options(sdk.NARROW, {"wide": wide})
    kit.ct.convert(
        mil_program,
        source="milinternal",
        convert_to="mlprogram",
        minimum_deployment_target=kit.version,
        compute_precision=kit.ct.precision.FLOAT16,
        pass_pipeline=pipeline,
        skip_model_load=True,
        package_dir=str(package),
        **({"inputs": ports} if ports else {}),
    )


def _build(program: Program, emitter: Emitter, kit: sdk.Sdk) -> Any:
    inner = _states(program)
    weights = program.weight_names()
    given = [n for n in program.graph.nodes if n.op == "placeholder" and n.name not in weights]
    ports = {
        safe_name(p.name): _placeholder(p, shape_of(n), p.name in inner, kit)
        for p, n in zip(program.inputs, given, strict=True)
    }
    asked = masks(program) if emitter.ane else ()
    if asked:
        shape = (1, 1, _tokens(program), next(p.shape[2] for p in program.inputs if p.name in inner))
        ports |= {m.name: kit.mb.placeholder(shape=shape, dtype=kit.types.fp32, name=m.name) for m in asked}
    with kit.mil.Function(ports, opset_version=kit.version) as function:
        for port, node in zip(program.inputs, given, strict=True):
            value = function.inputs[safe_name(port.name)]
            if port.name in inner:
                emitter.states[node.name] = State(value, inner[port.name])
            else:
                emitter.sizes.declare(value)
                emitter.mb.start(node.name)
                emitter.bind(node, emitter.cast(value, port.dtype))
        emitter.masks = {(m.window, m.chunk): function.inputs[m.name] for m in asked}
        for node in program.graph.nodes:
            if node.op == "call_function":
                emitter.emit(node)
        _check_states(emitter)
        function.set_outputs(_outputs(program, emitter, kit))
    return function


def _placeholder(port: Port, shape: Sequence[Size], state: bool, kit: sdk.Sdk) -> Any:
    if state:
        return kit.mb.state_tensor_placeholder(shape=shape, dtype=kit.types.fp16)
    return kit.mb.placeholder(shape=shape, dtype=_port_type(port, kit), name=port.name)


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
        safe_name(f"{n.name}__"): (n.name, shape_of(n))
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
