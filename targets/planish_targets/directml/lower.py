"""Program to a float16 ONNX file for DirectML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from planish_passes.errors import PlanishError
from planish_passes.program import Program, module_path, op_name
from planish_passes.quantise import SCALES, VALUES
from planish_passes.ranges import Range, range_of
from planish_passes.weights import WeightStore
from planish_targets.directml.composites import BLOCKS
from planish_targets.directml.precision import LARGEST

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 21  # the newest that the provider registers
_NORMS = ("planish.rms_norm", "planish.add_rms_norm", "aten.layer_norm")
_LARGEST_TABLE = 1 << 20  # elements of an integer constant that may be read while lowering


# Values that were seen to be larger stay float32: other texts than those of the audit may reach further.
HEADROOM = 4.0
LIMIT = LARGEST / HEADROOM


def write(program: Program, path: Path) -> None:
    """Translate, fold, turn to float16, save. Caches become float16 ports; all other ports keep their types.

    Raises:
        PlanishError: an operator or a weight format has no form here, or a cache does not fit into float16; names it
            and its module.
    """
    from onnxscript import optimizer

    from planish_targets.directml.composites import translations
    from planish_targets.directml.half import to_half
    from planish_targets.directml.points import fold_middles
    from planish_targets.directml.shapes import constant_shapes
    from planish_targets.onnx_graph.pack import fold_packing
    from planish_targets.onnx_graph.save import save
    from planish_targets.onnx_graph.tidy import tidy
    from planish_targets.onnx_graph.translate import translate

    _check_formats(program)
    _check_caches(program)
    model = translate(program, translations(), OPSET)
    _read_tables(model, program.weights)
    constant_shapes(model)
    # With fixed shapes nothing about shapes is left to compute; Shape and its readers would go to the CPU.
    optimizer.fold_constants(model)
    weights, aliases = fold_packing(model, fold_middles(model, program.weights))
    weights = tidy(model, weights)
    ports = frozenset(name for pair in program.states for name in pair)
    weights = to_half(model, weights, OPSET, ports=ports, large=frozenset(large_values(program)) | _minima(program))
    save(model, weights, path, aliases)


def _minima(program: Program) -> frozenset[str]:
    """What minima add to weights stays float32: it is little to compute, and the minima themselves are kept so."""
    kinds = ("planish.linear_minima", "planish.embedding_minima")
    return frozenset(n.name for n in program.graph.nodes if n.op == "call_function" and op_name(n) in kinds)


def audited(program: Program) -> tuple[str, ...]:
    """What the activation-range audit changed, in sentences; nothing for programs without annotations."""
    large = large_values(program)
    norms = {
        module_path(n): seen.mean_square
        for n in program.graph.nodes
        if n.op == "call_function" and op_name(n) in _NORMS
        for seen in map(range_of, n.all_input_nodes[:1] if op_name(n) != "planish.add_rms_norm" else n.users)
        if seen is not None and seen.mean_square > LARGEST
    }
    said = []
    if large:
        modules = {n.name: module_path(n) or n.name for n in program.graph.nodes if n.name in large}
        peaks = {modules[name]: max(large[n].peak for n in modules if modules[n] == modules[name]) for name in modules}
        said.append(f"float32 where values passed {LIMIT:.0f}: {_listed(peaks)}")
    if norms:
        said.append(f"norms that float16 would overflow (mean of x^2 above {LARGEST:.0f}): {_listed(norms)}")
    return tuple(said)


def _listed(found: Mapping[str, float]) -> str:
    return ", ".join(f"{name} ({number:.3g})" for name, number in found.items())


def large_values(program: Program) -> dict[str, Range]:
    """Nodes whose values were seen above `LIMIT`, with what was seen; empty for programs without annotations."""
    found = {n.name: range_of(n) for n in program.graph.nodes}
    return {name: seen for name, seen in found.items() if seen is not None and seen.peak > LIMIT}


def _check_caches(program: Program) -> None:
    """Attention kernels take float16, whatever is done around them."""
    for node in program.graph.nodes:
        if node.op != "call_function" or op_name(node) != "planish.group_query_attention":
            continue
        for source in node.all_input_nodes[:3]:
            seen = range_of(source)
            if seen is not None and seen.peak > LARGEST:
                raise PlanishError(
                    f"queries, keys or values reach {seen.peak:.3g}, and float16 ends at {LARGEST:.0f}",
                    f"module {module_path(source) or '(top)'}, target directml",
                    "compile for onnxruntime, which computes in float32",
                )


def _check_formats(program: Program) -> None:
    names = program.weight_names()
    for node in program.graph.nodes:
        if node.op != "call_function" or op_name(node) not in ("planish.linear_q", "planish.embedding_q"):
            continue
        bits = node.args[5] if op_name(node) == "planish.linear_q" else node.args[4]
        columns, groups = (int(node.args[i].meta["val"].shape[1]) for i in (1, 2))
        if bits == 8 or (bits == 4 and columns // groups in BLOCKS):
            continue
        name = names[node.args[1].name].removesuffix(VALUES)
        raise PlanishError(
            f"{op_name(node)} of {name!r} has {bits} bits in groups of {columns // groups}",
            f"module {module_path(node) or '(top)'}, target directml",
            f"8 bits, or 4 bits in groups of {', '.join(map(str, sorted(BLOCKS)))}, have a form here",
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
