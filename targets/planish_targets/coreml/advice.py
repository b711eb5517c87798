"""What is known, and by whom, about the Neural Engine, evaluated on a saved package. Advice: it proves nothing.

Core ML alone decides where an operation runs, on the device; `MLComputePlan` on a Mac shows it. Grades: S = Apple's own
text, C = community measurement or guess. None of the rules was checked on hardware by this project.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from planish_targets.contract import Artifact, Placed, Placement, Unavailable
from planish_targets.coreml import mil
from planish_targets.coreml.plan import CPU, Plan, Planned
from planish_targets.coreml.work import work

SOURCE = "no statement: Core ML decides on the device (MLComputePlan on a Mac shows it)"
LARGEST = 16384  # elements of one dimension
_SHOWN = 3  # findings that a line of advice names


@dataclass(frozen=True)
class View:
    """A package as the rules see it: computed operations, constants, compressed weights, ports."""

    operations: tuple[mil.MilOperation, ...]
    constants: tuple[mil.MilOperation, ...]
    weights: Mapping[str, mil.QuantizedBlob]
    inputs: tuple[mil.MilPort, ...]
    outputs: frozenset[str]
    states: tuple[mil.MilPort, ...]

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


def _flexible(view: View) -> list[str]:
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
        "C", "flexible input shapes lose the Neural Engine", "github.com/apple/coremltools/issues/1764", _flexible, True
    ),
    Rule("C", "topk and what moves its indices run on the CPU", "github.com/roboflow/rf-detr/pull/1495", _topk, True),
    Rule(
        "C",
        "gather and recurrent layers are not on the Neural Engine (2020 format, partly guesses)",
        "github.com/hollance/neural-engine",
        lambda view: view.named("gather", "gather_nd", "gather_along_axis", "lstm", "gru", "rnn"),
        True,
    ),
    Rule(
        "C",
        "small graphs with blockwise int4 weights run on the CPU without notice",
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
        "blockwise and int4 weights, and tables for groups of channels, need iOS 18 or macOS 15",
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


def placement(artifact: Artifact, plan: Plan | Unavailable) -> Placement:
    """Every operation of every function, and for each rule, and for the work, one line of advice.

    Args:
        artifact: whose package is read.
        plan: Core ML's own, which says where operations run; without it where = "unknown" for all.
    """
    names = mil.functions(artifact.path)
    views = {name: View.of(mil.load(artifact.path, name)) for name in names}
    given = artifact.options.get("modules", {})
    modules: Mapping[str, str] = given if isinstance(given, Mapping) else {}
    planned: Mapping[str, Mapping[str, Planned]] = plan.functions if isinstance(plan, Plan) else {}
    nodes = tuple(
        _placed(
            o,
            o.output if len(names) == 1 else f"{name}/{o.output}",
            planned.get(name, {}).get(o.output),
            source_module(o, modules),
        )
        for name, view in views.items()
        for o in view.operations
    )
    if isinstance(plan, Plan):
        source = f"MLComputePlan, {plan.machine} (a plan of this machine; another one may decide otherwise)"
    else:
        source = SOURCE if sys.platform != "darwin" else f"{SOURCE}; {plan.reason}"
    return Placement(source, nodes, advice=advise(views))


def _placed(operation: mil.MilOperation, name: str, found: Planned | None, module: str) -> Placed:
    if found is None:
        return Placed(name, operation.type, "unknown", "Core ML", "decided on the device", module)
    if found.unit != CPU:
        return Placed(name, operation.type, "accelerated", found.unit, "", module)
    others = [unit for unit in found.able if unit != CPU]
    reason = f"Core ML prefers it to {' and '.join(others)}" if others else "nothing else computes it"
    return Placed(name, operation.type, "fallback", CPU, reason, module)


def advise(views: Mapping[str, View]) -> tuple[str, ...]:
    """Each rule with what it speaks about in the functions of a package, and the share of work that none sends away."""
    return (
        *(_line(rule, views) for rule in RULES),
        *(_work(name, view, len(views) > 1) for name, view in views.items()),
    )


def _line(rule: Rule, views: Mapping[str, View]) -> str:
    found = {name: rule.find(view) for name, view in views.items()}
    told = [(f"in {name} " if len(views) > 1 else "") + _named(names) for name, names in found.items() if names]
    about = f"concerns {'; '.join(told)}" if told else "concerns nothing here"
    return f"[{rule.grade}] {rule.text}: {about} ({rule.source}; not verified on hardware)"


def _named(found: Sequence[str]) -> str:
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{', '.join(found[:_SHOWN])}{more}"


def _work(name: str, view: View, several: bool) -> str:
    spoken = {found.partition(" ")[0] for rule in RULES if rule.leaves for found in rule.find(view)}
    total, left = work(view.operations, view.constants, spoken, bool(_flexible(view)))
    share = f"{100 * left / total:.1f} %" if total else "none"
    where = f" of {name}" if several else ""
    return (
        f"[estimate] {share} of the {total / 1e6:.6g} million floating-point operations{where} are in operations that "
        "none of these rules sends elsewhere (from declared shapes; it says nothing about placement)"
    )


def source_module(operation: mil.MilOperation, modules: Mapping[str, str]) -> str:
    """The source module of an operation; "" when a pass made it. Names are `<node>__<operation>` (emit.emitter)."""
    node = operation.output.rpartition("__")[0]
    return modules.get(node, "")
