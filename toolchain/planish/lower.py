"""One target: from the shared program to a checked artifact."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from planish.compiled import Progress, TargetResult
from planish.exhausted import exhausted
from planish.failures.postmortem import examine
from planish.generation_files import add_generation_files
from planish.request import Gates, Request
from planish.source import Source
from planish.tasks import Task
from planish.verdict import Drift, Failed, Metric, NotRun, Passed, Verdict
from planish.verify.attributes import check_attributes
from planish.verify.cases import Case
from planish.verify.decoder_exam import opening
from planish.verify.exam import OFF, Exam
from planish.verify.lowering import Execution, Lowered, lowering, outside
from planish.verify.ranges import audit
from planish.verify.text_runner import text_runner
from planish.verify.together import Steps, known, together
from planish.verify.weights import check_integers, check_palettes
from planish_passes import pipeline
from planish_passes.bind import bind
from planish_passes.errors import PlanishError
from planish_passes.infra import Outcome, Pass, run_passes
from planish_passes.memory import give_back_memory
from planish_passes.palette import palettes
from planish_passes.program import Program
from planish_passes.quantise import widths
from planish_targets import registry
from planish_targets.contract import Artifact, Evidence, Numerics, Placement, ReadsPalettes, Recipe, Target

SOURCE_LENGTH = 128  # tokens that an encoder reads, where the decoder's shapes are fixed and nobody says otherwise


@dataclass(frozen=True)
class Shared:
    """What all targets have in common for one program of the model.

    Args:
        name: of the program, where the model has several; else empty.
        quality: (dtype of weights, rounding of activations) -> the answer; targets with the same numerics share it.
        drift: the same, of inner values.
    """

    request: Request
    recipe: Recipe
    task: Task
    program: Program
    source: Source
    exam: Exam
    name: str = ""
    quality: dict[tuple[torch.dtype, str], Verdict] = field(default_factory=dict)
    drift: dict[tuple[torch.dtype, str], Drift] = field(default_factory=dict)


def lower(shared: Shared, target: Target, progress: Progress, workdir: Path) -> TargetResult:
    """Lower and check; the artifact lands in `workdir`/<target>[/<program>]."""
    request = shared.request
    name = f"{target.name}/{shared.name}" if shared.name else target.name
    numerics = target.numerics(shared.recipe)
    if request.activations != "auto":
        fast = numerics.fast or numerics.activations
        numerics = replace(numerics, activations="none" if request.activations == "none" else fast)
    sizes = _sizes(shared, target)
    fixed = not shared.program.axes or (sizes is not None and set(sizes) == set(shared.program.axes))
    progress.stage(f"lower {name}", "fixed shapes" if fixed else "dynamic shapes")
    order = pipeline.yardstick(numerics.weights, numerics.activations, numerics.epsilons)
    full = run_passes(shared.program, order).program
    if shared.program.states and numerics.compute == torch.float16:
        seen = opening(shared.task, shared.source, full, shared.exam.given)
        full = run_passes(full, pipeline.annotate(audit(full, seen))).program
    yardstick = full if request.logits == "all" else run_passes(full, pipeline.last_token()).program
    try:
        outcome, artifact = _written(shared, target, yardstick, sizes, workdir / registry.folder(name))
    except PlanishError as refusal:
        if exhausted(refusal):
            raise  # says nothing of the model
        reason = f"{refusal.what} ({refusal.where}); {refusal.hint}"
        verdict = Failed("lower", Evidence.STRUCTURAL, reason)
        return TargetResult(name, None, (verdict,), refusal=examine(refusal, target.name))
    progress.stage(f"verify {name}")
    gc.collect()  # exporters leave graphs behind that hold themselves
    give_back_memory()
    made = _structure(shared, target, artifact, outcome, yardstick, numerics, name)
    return _checked(shared, target, made, bind(full, shared.exam.given), yardstick, outcome.program, numerics)


def _structure(
    shared: Shared,
    target: Target,
    artifact: Artifact,
    outcome: Outcome,
    yardstick: Program,
    numerics: Numerics,
    name: str,
) -> TargetResult:
    """What is seen without running anything."""
    inside = {port for pair in yardstick.states for port in pair} if artifact.context else set()
    placement = target.placement(artifact)
    return TargetResult(
        name,
        artifact,
        (*_inspected(shared, target, artifact, outcome.program, numerics), placed(placement, shared.request.gates)),
        placement,
        shapes={p.name: p.shape for p in outcome.program.inputs if p.name not in inside},
        axes=outcome.program.axes,
        steps=outcome.steps,
    )


def _checked(
    shared: Shared,
    target: Target,
    made: TargetResult,
    full: Program,
    yardstick: Program,
    form: Program,
    numerics: Numerics,
) -> TargetResult:
    """The result with what programs and the artifact compute, asked together."""
    request, artifact, key = shared.request, made.artifact, (numerics.weights, numerics.activations)
    assert artifact is not None
    # Targets with the same numerics share one yardstick, hence one answer.
    quality = known(shared.quality[key]) if key in shared.quality else shared.exam.quality(full)
    if not request.verify:
        (shared.quality[key],) = together([quality])
        return replace(made, verdicts=(shared.quality[key], *made.verdicts, NotRun("lowering", OFF)))
    drift = known(shared.drift[key]) if key in shared.drift else shared.exam.drift(full)
    execution = Execution(request.threads, request.timeout, request.runner)
    lowered = _lowering(shared, target, artifact, full, yardstick, form, numerics, execution)
    running = shared.exam.running(target, artifact, full, execution, numerics)
    text = known(tuple[Verdict, ...]())
    if artifact.context and not shared.task.dependent:
        files, ends = shared.source.tokenizer_files, shared.program.facts.get("eos_token_ids", ())
        text = text_runner(target, artifact, files, ends, execution, request.gates.tokenizer)
    # In the order in which artifacts are asked: the first call is timed, and its process's memory measured.
    (cases, found), more, told, shared.quality[key], shared.drift[key] = together(
        [lowered, running, text, quality, drift]
    )
    return replace(
        made,
        verdicts=(shared.quality[key], *made.verdicts, found.verdict, *more, *told),
        latency=found.speed.medians() if found.speed else {},
        latency_device=found.speed.device if found.speed else "",
        speed=found.speed,
        drift=(shared.drift[key], *found.drift),
        golden_inputs={c.name: outside(artifact, yardstick, c.inputs) for c in cases},
        golden_outputs=found.truth,
    )


def _lowering(
    shared: Shared,
    target: Target,
    artifact: Artifact,
    full: Program,
    yardstick: Program,
    form: Program,
    numerics: Numerics,
    execution: Execution,
) -> Steps[tuple[list[Case], Lowered]]:
    cases = yield from shared.exam.cases(full, form, artifact)
    found = yield from lowering(
        target,
        artifact,
        yardstick,
        form,
        cases,
        recipe=shared.recipe,
        numerics=numerics,
        execution=execution,
        multiple=shared.request.gates.lowering,
    )
    return cases, found


def _written(
    shared: Shared, target: Target, yardstick: Program, sizes: Mapping[str, int] | None, folder: Path
) -> tuple[Outcome, Artifact]:
    can = target.capabilities
    if yardstick.states and not can.caches:
        raise PlanishError(
            f"{target.name} does not take language models yet",
            "a program with a key/value cache",
            f"targets that do: {', '.join(n for n, t in registry.targets().items() if t.capabilities.caches)}",
        )
    if strange := set(widths(shared.program).values()) - can.bits:
        raise PlanishError(
            f"{target.name} cannot encode {min(strange)}-bit weights",
            f"recipe {shared.recipe.name!r}",
            f"widths that it can encode: {', '.join(map(str, sorted(can.bits)))}" if can.bits else "recipe float",
        )
    if "planish.linear_lut" not in can.keeps and palettes(shared.program):
        raise PlanishError(
            f"{target.name} has no palettes",
            f"recipe {shared.recipe.name!r}",
            f"targets that do: {', '.join(n for n, t in registry.targets().items() if _keeps_palettes(t))}",
        )
    order = (*_caches(shared.request, target, yardstick), *pipeline.for_target(can.keeps, sizes))
    outcome = run_passes(yardstick, (*order, *target.passes(shared.recipe)))
    folder.mkdir(parents=True)
    artifact = target.lower(outcome.program, folder, shared.recipe)
    if yardstick.states and not shared.task.dependent:
        artifact = add_generation_files(artifact, target, shared.source, shared.program)
    return outcome, artifact


def _inspected(shared: Shared, target: Target, artifact: Artifact, form: Program, numerics: Numerics) -> list[Verdict]:
    """Checks that compute nothing."""
    request, verdicts = shared.request, list[Verdict]()
    if shared.recipe.bits and request.verify:
        verdicts.append(check_integers(shared.program, target, artifact))
    if request.verify and isinstance(target, ReadsPalettes) and (wanted := palettes(shared.program)):
        verdicts.append(check_palettes(wanted, target.read_palettes(artifact)))
    if request.verify:
        verdicts.append(check_attributes(target, artifact, form, numerics))
    if request.max_size is not None:
        verdicts.append(_fits(artifact, int(request.max_size)))
    return verdicts


def _keeps_palettes(target: Target) -> bool:
    return "planish.linear_lut" in target.capabilities.keeps and isinstance(target, ReadsPalettes)


def _fits(artifact: Artifact, limit: int) -> Verdict:
    metric = Metric("megabytes", artifact.nbytes() / 1e6, limit / 1e6)
    if metric.ok:
        return Passed("size", Evidence.STRUCTURAL, (metric,), "files of the artifact")
    reason = "the artifact is larger than --max-size"
    return Failed("size", Evidence.STRUCTURAL, reason, (metric,), "files of the artifact")


def _caches(request: Request, target: Target, program: Program) -> tuple[Pass, ...]:
    if not program.states or not target.capabilities.resident:
        return ()
    longest = program.axes["past"][1]
    if request.context is not None and request.context > longest:
        raise PlanishError(
            f"the model takes {longest} tokens at most", f"--context {request.context}", "give a smaller number"
        )
    others = [axis for axis in program.axes if axis not in ("batch", "past", "sequence")]
    sizes = {axis: source_length(request, program) for axis in others}
    return pipeline.resident(min(request.context or target.capabilities.resident, longest), sizes)


def source_length(request: Request, program: Program) -> int:
    """Tokens that the encoder has read, in every check of the decoder, and where the decoder's shapes are fixed."""
    return min(max(request.lengths, default=SOURCE_LENGTH), program.axes.get("source", (0, SOURCE_LENGTH))[1])


def _sizes(shared: Shared, target: Target) -> dict[str, int] | None:
    """Fixed sizes for a target: of all dimensions, or of those that its artifact cannot leave open; None = of none."""
    request, can = shared.request, target.capabilities
    if shared.program.states:
        return None  # lengths grow from call to call
    axes = shared.program.axes
    if not axes or (can.dynamic_shapes and request.dynamic is not False):
        return None
    open_ones = can.ranged & set(axes) if not shared.name else frozenset[str]()
    if request.dynamic and not open_ones:
        raise PlanishError(
            f"{target.name} takes fixed shapes only", "--dynamic", "leave --dynamic out, or drop this target"
        )
    if len(request.lengths) > 1 and "sequence" in axes and "sequence" not in open_ones:
        raise PlanishError(
            f"{target.name} takes one sequence length in an artifact",
            f"--sequence-length {','.join(map(str, request.lengths))}",
            "name one, or drop this target",
        )
    wanted = {"batch": can.batch, "sequence": max(request.lengths, default=can.sequence)}
    if not request.lengths and "sequence" in axes:
        wanted["sequence"] = min(wanted["sequence"], axes["sequence"][1])
    left = open_ones if request.dynamic or len(request.lengths) > 1 else frozenset()
    return {axis: wanted[axis] for axis in axes if axis not in left}


def placed(placement: Placement, gates: Gates) -> Verdict:
    """The verdict on where operations run; gated by the share of operations, and of multiply-accumulates of weights."""
    linear = placement.linear_share()
    metrics = [Metric("accelerated_share", placement.share(), gates.placement, at_most=False)]
    if linear is not None:
        metrics.append(Metric("linear_share", linear, gates.delegated, at_most=False))
    reasons = list(placement.violations[:3])
    if not metrics[0].ok:
        reasons.append(f"only {placement.share():.0%} of the operations are accelerated")
    if linear is not None and not metrics[1].ok:
        reasons.append(f"only {linear:.1%} of the multiply-accumulates of weights are accelerated")
    known = not all(n.where == "unknown" for n in placement.nodes)
    if reasons and (known or placement.violations):
        return Failed("placement", Evidence.STRUCTURAL, "; ".join(reasons), tuple(metrics), placement.source)
    if gates.delegated is not None and linear is None:
        return NotRun("placement", f"{placement.source}: it does not tell what share --gate delegated asks for")
    if not known:
        return NotRun("placement", placement.source)
    return Passed("placement", Evidence.STRUCTURAL, tuple(metrics), placement.source)
