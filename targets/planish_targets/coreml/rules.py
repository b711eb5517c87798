"""What is published about the Neural Engine, and by whom, as rules over a saved package.

Grades: S = Apple's own text, C = community measurement or guess. None was checked on hardware by this project.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from planish_targets.coreml import mil

LARGEST = 16384  # elements of one dimension


@dataclass(frozen=True)
class View:
    """A package as the rules see it: computed operations, constants, compressed weights, ports."""

    operations: tuple[mil.MilOperation, ...]
    constants: tuple[mil.MilOperation, ...]
    weights: Mapping[str, mil.QuantizedBlob]
    inputs: tuple[mil.MilPort, ...]
    outputs: frozenset[str]
    states: tuple[mil.MilPort, ...]
    dilated: tuple[str, ...]

    @classmethod
    def of(cls, program: mil.MilProgram) -> View:
        """The view of a loaded package."""
        every, computed = program.operations(constants=True), program.operations()
        names = {o.name for o in computed}
        return cls(
            computed,
            tuple(o for o in every if o.name not in names),
            program.quantized_weights(),
            program.inputs,
            frozenset(p.name for p in program.outputs),
            program.states,
            tuple(o.output for o in computed if o.type == "conv" and _steps(program, o) > 1),
        )

    def named(self, *types: str) -> list[str]:
        """Operations of these types."""
        return [o.output for o in self.operations if o.type in types]


@dataclass(frozen=True)
class Rule:
    """One published statement.

    Args:
        grade: S or C.
        text: the statement, short.
        source: where it is written.
        find: what in a package it speaks about; an empty list means that nothing does.
        leaves: it says that these operations are computed elsewhere.
    """

    grade: str
    text: str
    source: str
    find: Callable[[View], Sequence[str]]
    leaves: bool = False


def _steps(program: mil.MilProgram, convolution: mil.MilOperation) -> int:
    found = program.parameter(convolution.output, "dilations")
    return 1 if found is None else int(found.max())


def _rank(operation: mil.MilOperation) -> int:
    return len(operation.outputs[0].shape or ())


def _wide(view: View) -> list[str]:
    return [
        f"{output.name} {list(output.shape)}"
        for o in (*view.operations, *view.constants)
        for output in o.outputs
        if output.shape and max(d or 0 for d in output.shape) > LARGEST
    ]


def _float32(view: View) -> list[str]:
    inputs = {p.name for p in view.inputs}
    found = []
    for o in view.operations:
        at_edge = o.type == "cast" and (o.output in view.outputs or bool(inputs & set(o.inputs)))
        if o.outputs and o.outputs[0].dtype == "fp32" and not at_edge:
            found.append(o.output)
    return found


def flexible(view: View) -> list[str]:
    """Inputs whose shapes are not fixed."""
    return [f"input {p.name} {list(p.shape)}" for p in view.inputs if None in p.shape]


def _topk(view: View) -> list[str]:
    top = {output.name for o in view.operations if o.type == "topk" for output in o.outputs}
    followers = ("expand_dims", "tile", "gather_along_axis")
    after = [o.output for o in view.operations if o.type in followers and top & set(o.inputs)]
    return [*sorted(top), *after]


def _small_sdpa(view: View) -> list[str]:
    sizes = {output.name: prod(d or 1 for d in output.shape or ()) for o in view.operations for output in o.outputs}
    return [
        o.output
        for o in view.operations
        if o.type == "scaled_dot_product_attention" and max((sizes.get(i, 0) for i in o.inputs), default=0) < 2_000_000
    ]


def _blocked(view: View) -> list[str]:
    four = ("int4", "uint4")
    return [n for n, w in view.weights.items() if w.dtype in four and w.scale is not None and w.scale.shape[-1] > 1]


def _eight_bit(view: View) -> list[str]:
    return [n for n, w in view.weights.items() if w.dtype in ("int8", "uint8") and w.lut is None]


def _tables(view: View) -> list[str]:
    return [n for n, w in view.weights.items() if w.lut is not None and w.dtype == "uint4"]


def _new_in_18(view: View) -> list[str]:
    grouped = {n for n, w in view.weights.items() if w.lut is not None and w.lut.dim() > 1}
    return [n for n, w in view.weights.items() if n in grouped or w.op_type == "constexpr_blockwise_shift_scale"]


def _flat_hardswish(view: View) -> list[str]:
    flat = [o.output for o in view.operations if o.type in ("linear", "matmul") and _rank(o) == 2]
    return flat if view.named("sigmoid_hard", "hard_swish") else []


def _linears(view: View) -> list[str]:
    return [o.output for o in view.operations if o.type == "linear" or (o.type == "matmul" and _rank(o) < 4)]


RULES: tuple[Rule, ...] = (
    Rule(
        "S",
        "the Neural Engine prefers 4-D channels-first tensors and 1x1 convolutions to linear layers",
        "machinelearning.apple.com/research/neural-engine-transformers",
        _linears,
    ),
    Rule(
        "C", f"dimensions above {LARGEST} leave the Neural Engine", "github.com/ncdrone/rustane/issues/13", _wide, True
    ),
    Rule(
        "C",
        "an fp32 operation breaks residency on the Neural Engine",
        "github.com/john-rocky/coreai-model-zoo/pull/36",
        _float32,
        True,
    ),
    Rule(
        "C",
        "fused attention goes to the Neural Engine only from about 2 million elements each of q, k and v",
        "github.com/vx-lang/Vx/issues/437",
        _small_sdpa,
    ),
    Rule(
        "C", "flexible input shapes lose the Neural Engine", "github.com/apple/coremltools/issues/1764", flexible, True
    ),
    Rule("C", "topk and what moves its indices run on the CPU", "github.com/roboflow/rf-detr/pull/1495", _topk, True),
    Rule(
        "C",
        "gather, recurrent layers, dilated convolutions and custom layers are not on the Neural Engine (2020 format, "
        "partly guesses)",
        "github.com/hollance/neural-engine",
        lambda view: (
            *view.named("gather", "gather_nd", "gather_along_axis", "lstm", "gru", "rnn", "custom_layer"),
            *view.dilated,
        ),
        True,
    ),
    Rule(
        "C",
        "small graphs with blockwise int4 weights run on the CPU without notice; a decoder of 24 layers stayed",
        "alvaro-videla.com/ane-book/03-quantization.html",
        _blocked,
    ),
    Rule(
        "C",
        "int8 weights with one scale for the whole tensor stay on the Neural Engine; these have one per channel, "
        "of which the source does not speak",
        "alvaro-videla.com/ane-book/03-quantization.html",
        _eight_bit,
    ),
    Rule(
        "C",
        "4-bit tables for groups of 32 channels stay on the Neural Engine; of other groups the source does not speak",
        "alvaro-videla.com/ane-book/journal/112-int4-palettize-l0-ffn-probe-all-gates-pass.html",
        _tables,
    ),
    Rule(
        "S",
        "blockwise and int4 weights, and tables for groups of channels, need iOS 18 or macOS 15 (8-bit weights and "
        "tables for whole tensors iOS 16; 8-bit activations iOS 17, planish writes none)",
        "apple.github.io/coremltools/docs-guides/source/opt-whats-new.html",
        _new_in_18,
    ),
    Rule(
        "C",
        "softplus and exp overflow in fp16",
        "github.com/apple/coreai-torch/issues/106",
        lambda view: view.named("softplus", "softplus_parametric", "exp"),
    ),
    Rule(
        "C",
        "2-D matrix products followed by hardswish are inaccurate on the Neural Engine",
        "github.com/apple/coreai-torch/issues/51",
        _flat_hardswish,
    ),
    Rule(
        "C",
        "a stateful decoder gave wrong tokens on the Neural Engine; its card advises CPU and GPU",
        "a community model card, without a link",
        lambda view: [p.name for p in view.states],
    ),
)
