"""Program to .mlpackage: emit MIL, let coremltools' passes narrow and fuse it, save."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import fx

from planish_passes.errors import PlanishError
from planish_passes.program import Port, Program, module_path
from planish_targets.coreml import sdk
from planish_targets.coreml.emit import Emitter
from planish_targets.coreml.emit.emitter import mil_type

# coremltools' standard passes that are left out, each with its reason
SKIPPED = frozenset(
    {
        "common::fuse_conv_batchnorm",  # folded weights would be rounded again and differ from the program's
        "common::fuse_conv_scale",  # likewise
        "common::const_deduplication",  # equal weights of two layers would lose one of their names
        "common::guard_negative_gather_indices",  # three operations for each lookup; emitters do it where needed
    }
)
REPLACED = {"common::add_fp16_cast": sdk.NARROW}


def lower(program: Program, package: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Write `package`.

    Args:
        program: fixed shapes; linear_q, embedding_q and attention kept.
        package: path of the .mlpackage to write.

    Returns:
        MIL name -> weight name of every quantised weight, and notes for people.

    Raises:
        PlanishError: an operator has no form in Core ML, a shape is dynamic, or coremltools is missing.
    """
    kit = sdk.load()
    with sdk.quiet(), torch.no_grad():
        emitter = Emitter(program, kit)
        mil_program = _build(program, emitter, kit)
        pipeline = kit.ct.PassPipeline.DEFAULT
        pipeline.passes = [REPLACED.get(name, name) for name in pipeline.passes if name not in SKIPPED]
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
    return _found(mil_program, emitter.quantized), tuple(emitter.notes)


def _build(program: Program, emitter: Emitter, kit: sdk.Sdk) -> Any:
    if program.axes:
        raise PlanishError(
            f"dimensions {', '.join(program.axes)} are dynamic",
            f"program {program.name!r}",
            "fix them: pass sizes to for_target",
        )
    mil_program = kit.mil.Program()
    ports = {p.name: kit.mb.placeholder(shape=p.shape, dtype=_port_type(p, kit), name=p.name) for p in program.inputs}
    weights = program.weight_names()
    with kit.mil.Function(ports, opset_version=kit.ct.target.iOS18) as function:
        given = iter(program.inputs)
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name not in weights:
                port = next(given)
                emitter.bind(node, emitter.cast(function.inputs[port.name], port.dtype))
            elif node.op == "call_function":
                emitter.emit(node)
        function.set_outputs(_outputs(program, emitter, kit))
    mil_program.add_function("main", function)
    return mil_program


def _port_type(port: Port, kit: sdk.Sdk) -> Any:
    # Core ML takes no bool and no int64 inputs
    return kit.types.fp32 if mil_type(port.dtype) == "fp32" else kit.types.int32


def _outputs(program: Program, emitter: Emitter, kit: sdk.Sdk) -> list[Any]:
    returned: list[fx.Node] = list(program.graph.output_node().args[0])  # type: ignore[arg-type]
    results = []
    for node, port in zip(returned, program.outputs, strict=True):
        value = emitter.value(node)
        if mil_type(port.dtype) == "bool":
            value = emitter.cast(value, torch.int32)
        results.append(kit.mb.identity(x=value, name=port.name))
    return results


def _found(mil_program: Any, quantized: dict[str, str]) -> dict[str, str]:
    """Names in the file of the quantised weights: the passes rename what they narrow."""
    sanitised = {re.sub(r"\W", "_", name): weight for name, weight in quantized.items()}
    found: dict[str, str] = {}
    for op in mil_program.functions["main"].operations:
        if op.op_type == "constexpr_blockwise_shift_scale":
            name = op.outputs[0].name
            weight = sanitised.get(name.removesuffix("_cast_fp16"))
            if weight is not None:
                found[name] = weight
    missing = sorted(set(quantized.values()) - set(found.values()))
    if missing:
        raise PlanishError(
            "quantised weights are not in the package as integers",
            ", ".join(missing),
            "a coremltools pass rewrote them; report coremltools' version",
        )
    return found


def modules(program: Program) -> dict[str, str]:
    """Node name -> source module, for reports: MIL names start with the node's name."""
    return {n.name: module_path(n) for n in program.graph.nodes if n.op == "call_function" and module_path(n)}
