"""Program to a float16 ONNX file for DirectML."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from planish_passes.errors import PlanishError
from planish_passes.program import Program, module_path, op_name
from planish_passes.quantise import SCALES, VALUES
from planish_passes.weights import WeightStore

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 21  # the newest that the provider registers
_LARGEST_TABLE = 1 << 20  # elements of an integer constant that may be read while lowering


def write(program: Program, path: Path) -> None:
    """Translate, fold, turn to float16, save.

    Raises:
        PlanishError: an operator or a weight format has no form here; names it and its module.
    """
    from onnxscript import optimizer

    from planish_targets.directml.composites import translations
    from planish_targets.directml.half import to_half
    from planish_targets.onnx_graph.save import save
    from planish_targets.onnx_graph.tidy import tidy
    from planish_targets.onnx_graph.translate import translate

    _check_formats(program)
    model = translate(program, translations(), OPSET)
    _read_tables(model, program.weights)
    # With fixed shapes nothing about shapes is left to compute; Shape and its readers would go to the CPU.
    optimizer.fold_constants(model)
    weights = tidy(model, program.weights)
    weights = to_half(model, weights, OPSET)
    save(model, weights, path)


def _check_formats(program: Program) -> None:
    names = program.weight_names()
    for node in program.graph.nodes:
        if node.op != "call_function" or op_name(node) not in ("planish.linear_q", "planish.embedding_q"):
            continue
        scales = node.args[2]
        one_each = isinstance(scales, torch.fx.Node) and tuple(scales.meta["val"].shape)[1] == 1
        if one_each and node.args[3] is None:
            continue
        name = names[node.args[1].name].removesuffix(VALUES)
        raise PlanishError(
            f"{op_name(node)} of {name!r} has more than one scale per row, or zero points",
            f"module {module_path(node) or '(top)'}, target directml",
            "use a recipe with one symmetric scale per output channel (int8)",
        )


def _read_tables(model: ir.Model, weights: WeightStore) -> None:
    """Give integer constants their values, so that what is computed from them can be folded."""
    import onnx_ir as ir

    for name, value in model.graph.initializers.items():
        if value.const_value is not None or name not in weights or name.endswith((VALUES, SCALES)):
            continue
        spec = weights.spec(name)
        if not spec.dtype.is_floating_point and torch.Size(spec.shape).numel() <= _LARGEST_TABLE:
            value.const_value = ir.Tensor(weights.read(name).contiguous().numpy(), name=name)
