"""Are the integers right? In the program against the checkpoint, in each artifact against the program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import sqrt

import torch

from planish.verdict import Failed, Metric, Passed, Verdict
from planish_passes.errors import PlanishError
from planish_passes.pack_linears import PACKED
from planish_passes.palette import Palette
from planish_passes.program import Program
from planish_passes.quantise import VALUES, formats, quantized_rows
from planish_passes.weights import QuantizedTensor, WeightFormat, WeightStore
from planish_targets.contract import Artifact, Evidence, Target

HALF_STEP = 0.5 + 1e-3  # round to nearest is off by half a step at most; the rest is float32 division


FAR = 0.5  # relative error (Frobenius) that no rounding of 4 bits comes near; a wrong tensor has one of 1 and more


def check_program_weights(program: Program, original: WeightStore, nearest: bool = True) -> Verdict:
    """Every dequantised weight lies within half a quantisation step of the checkpoint's value.

    A shifted, transposed, zeroed or truncated tensor does not, and neither does rounding down. Roundings that look at
    more than one value (`nearest` False) move single values further; they are held to the tensor as a whole.

    Args:
        program: the quantised program.
        original: weights before quantisation.
    """
    if not nearest:
        return _as_a_whole(program, original)
    worst, at = 0.0, ""
    for name, format in formats(program).items():
        for weight, tensor in _blocks(program, original, name, format):
            groups = tensor.scales.shape[1]
            error = (weight - tensor.dequantize()).abs().view(weight.shape[0], groups, -1)
            steps = float((error / tensor.scales[..., None]).max())
            if not steps <= worst:
                worst, at = steps, name
    metric = Metric("steps", worst, HALF_STEP, case=at)
    if metric.ok:
        return Passed("weights", Evidence.EXECUTED, (metric,), "torch CPU")
    reason = f"weight {at!r} is {worst:.3g} quantisation steps away from the checkpoint"
    return Failed("weights", Evidence.EXECUTED, reason, (metric,), "torch CPU")


def _as_a_whole(program: Program, original: WeightStore) -> Verdict:
    worst, at = 0.0, ""
    for name, format in formats(program).items():
        apart = size = 0.0
        for weight, tensor in _blocks(program, original, name, format):
            apart += float((weight - tensor.dequantize()).norm()) ** 2
            size += float(weight.norm()) ** 2
        error = sqrt(apart) / max(sqrt(size), 1e-12)
        if not error <= worst:
            worst, at = error, name
    metric = Metric("relative", worst, FAR, case=at)
    if metric.ok:
        return Passed("weights", Evidence.EXECUTED, (metric,), "torch CPU")
    reason = f"weight {at!r} is {worst:.0%} of its own size away from the checkpoint"
    return Failed("weights", Evidence.EXECUTED, reason, (metric,), "torch CPU")


def _blocks(
    program: Program, original: WeightStore, name: str, format: WeightFormat
) -> Iterator[tuple[torch.Tensor, QuantizedTensor]]:
    """Some rows at a time: the checkpoint's float32, and what became of them."""
    store = program.weights
    # Some tensors can only be had as a whole.
    for start, stop in min(original.spans(name), store.spans(name + VALUES), key=len):
        yield original.rows(name, start, stop).to(torch.float32), quantized_rows(store, name, format, start, stop)


def check_integers(program: Program, target: Target, artifact: Artifact) -> Verdict:
    """`check_artifact_weights` of what is read from the files; what cannot be read is a failure of the artifact."""
    try:
        found = target.read_weights(artifact)
    except PlanishError as problem:
        return _wrong(f"{artifact.entry}: {problem.what} ({problem.where})")
    return check_artifact_weights(program, found)


def check_artifact_weights(program: Program, found: Mapping[str, QuantizedTensor]) -> Verdict:
    """The integers and scales read back from the artifact's files equal the program's, bit for bit."""
    wanted, store = formats(program), program.weights
    rows = {name: store.spec(name + VALUES).shape[0] for name in wanted}
    stored = _apart(found, rows)
    for name, format in wanted.items():
        if name not in stored:
            return _wrong(f"weight {name!r} is not in the artifact as integers")
        tensor, other = quantized_rows(store, name, format, 0, rows[name]), stored.pop(name)
        if not torch.equal(other.values, tensor.values):
            return _wrong(f"weight {name!r}: {_different(other.values, tensor.values)} integers differ")
        if not torch.equal(other.scales.float(), tensor.scales):
            return _wrong(f"weight {name!r}: {_different(other.scales.float(), tensor.scales)} scales differ")
        if _zeros_differ(other.zero_points, tensor.zero_points):
            return _wrong(f"weight {name!r}: zero points differ")
        if _zeros_differ(other.minima, tensor.minima):
            return _wrong(f"weight {name!r}: minima differ")
    return Passed(
        "weights", Evidence.EXECUTED, (Metric("bit_equal_tensors", float(len(wanted))),), "read from the files"
    )


def _apart(found: Mapping[str, QuantizedTensor], rows: Mapping[str, int]) -> dict[str, QuantizedTensor]:
    """Weights that a target stores one behind the other, each by its own name again."""
    apart: dict[str, QuantizedTensor] = {}
    for whole, tensor in found.items():
        at = 0
        for name in whole.split(PACKED):
            if name not in rows or PACKED not in whole:
                apart[name] = tensor
                continue
            span = slice(at, at + rows[name])
            zeros = None if tensor.zero_points is None else tensor.zero_points[span]
            minima = None if tensor.minima is None else tensor.minima[span]
            apart[name] = QuantizedTensor(tensor.values[span], tensor.scales[span], zeros, tensor.format, minima)
            at += rows[name]
    return apart


def check_palettes(wanted: Mapping[str, Palette], found: Mapping[str, Palette]) -> Verdict:
    """Indices and tables in the written files are those of the program, bit for bit.

    Args:
        wanted, found: weight name -> palette, of the program and of the artifact.
    """
    for name, palette in wanted.items():
        if name not in found:
            return _wrong(f"weight {name!r} has no palette in the artifact", "palettes")
        for part, (a, b) in {
            "indices": (found[name].indices, palette.indices),
            "entries": (found[name].tables.float(), palette.tables),
        }.items():
            if not torch.equal(a, b):
                return _wrong(f"weight {name!r}: {_different(a, b)} {part} differ", "palettes")
    metric = Metric("bit_equal_palettes", float(len(wanted)))
    return Passed("palettes", Evidence.EXECUTED, (metric,), "read from the files")


def _zeros_differ(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return (a is None) != (b is None) or (a is not None and b is not None and not torch.equal(a, b))


def _different(a: torch.Tensor, b: torch.Tensor) -> str:
    if a.shape != b.shape:
        return f"all ({list(a.shape)} instead of {list(b.shape)})"
    return f"{int((a != b).sum())} of {b.numel()}"


def _wrong(reason: str, check: str = "weights") -> Failed:
    return Failed(check, Evidence.EXECUTED, reason, (), "read from the files")
