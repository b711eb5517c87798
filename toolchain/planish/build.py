"""The way of one compile, from model to checked artifacts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import torch
from torch import nn

from planish.capture import capture
from planish.checkpoint import check_finite
from planish.compiled import Compiled, Progress, TargetResult, TensorBytes
from planish.estimate import check_room, estimate
from planish.generation_files import add_generation_files
from planish.quantising import checked, quantise, rounding, weight_format
from planish.recipes import RecipeSpec, find_recipe
from planish.request import Request
from planish.requirements import demand
from planish.source import Source, open_source
from planish.tasks import TASKS, Task
from planish.tasks.generation import TOKENS
from planish.verdict import Failed, Metric, NotRun, Passed, Verdict
from planish.verify.attributes import check_attributes
from planish.verify.decoding import DecoderExam, opening
from planish.verify.exam import OFF, EncoderExam, Exam, NoExam
from planish.verify.lowering import Execution, check_lowering
from planish.verify.ranges import audit
from planish.verify.weights import check_artifact_weights, check_program_weights
from planish_passes import pipeline
from planish_passes.errors import PlanishError
from planish_passes.infra import Outcome, Pass, run_passes
from planish_passes.match import is_op
from planish_passes.program import Program
from planish_passes.quantise import SCALES, VALUES, ZEROS
from planish_passes.weights import WeightStore
from planish_targets import registry
from planish_targets.contract import Evidence, Placement, Recipe, Target

_TEXT = 256  # tokens that the quality of a language model is measured on
_MEMORY = 256 << 20  # bytes of quantised weights that stay in memory between the runs of a yardstick


@dataclass(frozen=True)
class _Shared:
    """What all targets of one compile have in common."""

    request: Request
    recipe: Recipe
    program: Program
    source: Source
    exam: Exam
    quality: dict[tuple[torch.dtype, str], Verdict] = field(default_factory=dict)


def compile_model(request: Request, progress: Progress, workdir: Path) -> Compiled:
    """Compile one model for all requested targets; artifacts land in `workdir`/<target>.

    Raises:
        PlanishError: the request cannot be met at all (model, task, recipe, target). What fails later is a verdict.
    """
    recipe = find_recipe(request.recipe)
    targets = [registry.find(name) for name in dict.fromkeys(request.targets)]
    for target in targets:
        demand(target)
    progress.stage("source", request.model)
    source = open_source(
        request.model, task=request.task, revision=request.revision, trust_remote_code=request.trust_remote_code
    )
    task = TASKS[source.task]
    format = weight_format(request, recipe, task)
    stored = source.checkpoint.keys()
    weights_in_all = sum(prod(source.checkpoint.spec(key).shape) for key in stored)
    request = request.model_copy(update={"verify": checked(request, weights_in_all)})
    how = rounding(request, format, task, weights_in_all)
    needed = estimate(
        source.checkpoint, source.config, format, [t.name for t in targets], rounding=how, verify=bool(request.verify)
    )
    progress.stage("estimate", str(needed))
    notes = dict.fromkeys(check_room(needed, workdir))
    if not request.verify:
        notes["checks are off: nothing but hashes says that these artifacts are right"] = None
    progress.stage("capture", source.architecture)

    def weights(model: nn.Module) -> WeightStore:
        loaded = source.load(model)
        notes.update(dict.fromkeys(loaded.notes))
        return loaded.store

    captured = capture(source.model_class(), source.config, task, weights)
    if request.verify:
        check_finite(captured.program.weights)
    floating = run_passes(captured.program, pipeline.fuse())
    exam = _exam(request, recipe, source, task, floating.program, progress)
    verdicts = [exam.capture(floating.program)]
    progress.stage("quantise", recipe.name)
    quantised = Outcome(floating.program)
    if format is not None:
        quantised = quantise(floating.program, format, how, source, workdir / "quantised", progress)
        if request.verify:
            verdicts.append(check_program_weights(quantised.program, floating.program.weights, how == "nearest"))
    program = replace(quantised.program, weights=quantised.program.weights.memoised(_MEMORY))
    bits = format.bits if format else 0
    shared = _Shared(request, Recipe(recipe.name, bits), program, source, exam)
    results = tuple(_target(shared, target, progress, workdir) for target in targets)
    return Compiled(
        request=request,
        source=source,
        verdicts=tuple(verdicts),
        targets=results,
        weights=_bytes(floating.program, quantised.program),
        refused=(*floating.refused, *quantised.refused),
        steps=(*floating.steps, *quantised.steps),
        notes=(*notes, *captured.notes),
    )


def _exam(
    request: Request, recipe: RecipeSpec, source: Source, task: Task, program: Program, progress: Progress
) -> Exam:
    if not request.verify:
        return NoExam()
    progress.stage("reference", "the original model, run by transformers")
    longest = _longest(program)
    samples = task.samples(source.tokenizer_files, source.config, longest)
    model = source.reference()
    if task.metric == "tokens":
        text = samples[0][TOKENS][:, :_TEXT]
        return DecoderExam.of(model, text, longest, recipe, request.gates)
    pad = int(getattr(source.config, "pad_token_id", 0) or 0)
    return EncoderExam(samples, pad, longest, model, recipe, request.gates, task.metric)


def _longest(program: Program) -> int:
    if "sequence" in program.axes:
        return program.axes["sequence"][1]
    return next((int(p.shape[1]) for p in program.inputs if p.name == "input_ids"), 0)


def _target(shared: _Shared, target: Target, progress: Progress, workdir: Path) -> TargetResult:
    request, recipe = shared.request, shared.recipe
    numerics = target.numerics(recipe)
    sizes = _sizes(shared, target)
    progress.stage(f"lower {target.name}", "fixed shapes" if sizes else "dynamic shapes")
    full = run_passes(shared.program, pipeline.yardstick(numerics.weights, numerics.activations)).program
    if shared.program.states and numerics.compute == torch.float16:
        full = run_passes(full, pipeline.annotate(audit(full, opening(shared.source, full)))).program
    yardstick = full if request.logits == "all" else run_passes(full, pipeline.last_token()).program
    folder = workdir / target.name
    folder.mkdir(parents=True)
    try:
        if shared.program.states and not target.capabilities.caches:
            raise PlanishError(
                f"{target.name} does not take language models yet",
                "a program with a key/value cache",
                f"targets that do: {', '.join(n for n, t in registry.targets().items() if t.capabilities.caches)}",
            )
        if recipe.bits and recipe.bits not in target.capabilities.bits:
            raise PlanishError(
                f"{target.name} cannot encode {recipe.bits}-bit weights",
                f"recipe {recipe.name!r}",
                f"widths that it can encode: {', '.join(map(str, sorted(target.capabilities.bits)))}",
            )
        order = (*_caches(request, target, yardstick), *pipeline.for_target(target.capabilities.keeps, sizes))
        outcome = run_passes(yardstick, (*order, *target.passes(recipe)))
        artifact = target.lower(outcome.program, folder, recipe)
    except PlanishError as refusal:
        reason = f"{refusal.what} ({refusal.where}); {refusal.hint}"
        return TargetResult(target.name, None, (Failed("lower", Evidence.STRUCTURAL, reason),))
    if shared.program.states:
        add_generation_files(artifact, shared.source, shared.program)
    inside = {name for pair in yardstick.states for name in pair} if artifact.context else set()
    progress.stage(f"verify {target.name}")
    verdicts = [_quality(shared, full, (numerics.weights, numerics.activations))]
    if recipe.bits and request.verify:
        verdicts.append(check_artifact_weights(shared.program, target.read_weights(artifact)))
    if request.verify:
        verdicts.append(check_attributes(target, artifact, outcome.program, numerics))
    placement = target.placement(artifact)
    verdicts.append(_check_placement(placement, request.gates.placement))
    base = TargetResult(
        target.name,
        artifact,
        tuple(verdicts),
        placement,
        shapes={p.name: p.shape for p in outcome.program.inputs if p.name not in inside},
        axes=outcome.program.axes,
        steps=outcome.steps,
    )
    if not request.verify:
        return replace(base, verdicts=(*verdicts, NotRun("lowering", OFF)))
    cases = shared.exam.cases(full, outcome.program, artifact)
    execution = Execution(request.threads, request.timeout, request.runner)
    lowered = check_lowering(
        target,
        artifact,
        yardstick,
        outcome.program,
        cases,
        recipe=recipe,
        numerics=numerics,
        execution=execution,
        multiple=request.gates.lowering,
    )
    more = shared.exam.running(target, artifact, full, execution, numerics.compute)
    return replace(
        base,
        verdicts=(*verdicts, lowered.verdict, *more),
        latency=lowered.latency,
        latency_device=lowered.device,
        golden_inputs={c.name: {n: t for n, t in c.inputs.items() if n not in inside} for c in cases},
        golden_outputs=lowered.truth,
    )


def _caches(request: Request, target: Target, program: Program) -> tuple[Pass, ...]:
    if not program.states or not target.capabilities.resident:
        return ()
    longest = program.axes["past"][1]
    if request.context is not None and request.context > longest:
        raise PlanishError(
            f"the model takes {longest} tokens at most", f"--context {request.context}", "give a smaller number"
        )
    return pipeline.resident(min(request.context or target.capabilities.resident, longest))


def _sizes(shared: _Shared, target: Target) -> dict[str, int] | None:
    """Fixed sizes for a target, or None where its shapes stay dynamic."""
    request, can = shared.request, target.capabilities
    if shared.program.states:
        return None  # lengths grow from call to call
    if request.dynamic and not can.dynamic_shapes:
        raise PlanishError(
            f"{target.name} takes fixed shapes only", "--dynamic", "leave --dynamic out, or drop this target"
        )
    dynamic = can.dynamic_shapes if request.dynamic is None else request.dynamic
    axes = shared.program.axes
    if dynamic or not axes:
        return None
    wanted = {"batch": can.batch, "sequence": request.sequence_length or can.sequence}
    if request.sequence_length is None and "sequence" in axes:
        wanted["sequence"] = min(wanted["sequence"], axes["sequence"][1])
    return {axis: wanted[axis] for axis in axes}


def _quality(shared: _Shared, yardstick: Program, key: tuple[torch.dtype, str]) -> Verdict:
    # Targets with the same numerics share one yardstick, hence one answer.
    if key not in shared.quality:
        shared.quality[key] = shared.exam.quality(yardstick)
    return shared.quality[key]


def _check_placement(placement: Placement, limit: float | None) -> Verdict:
    if not placement.violations and all(n.where == "unknown" for n in placement.nodes):
        return NotRun("placement", placement.source)
    metric = Metric("accelerated_share", placement.share(), limit, at_most=False)
    if placement.violations:
        reason = "; ".join(placement.violations[:3])
        return Failed("placement", Evidence.STRUCTURAL, reason, (metric,), placement.source)
    if not metric.ok:
        reason = f"only {metric.value:.0%} of the operations are accelerated"
        return Failed("placement", Evidence.STRUCTURAL, reason, (metric,), placement.source)
    return Passed("placement", Evidence.STRUCTURAL, (metric,), placement.source)


def _bytes(before: Program, after: Program) -> tuple[TensorBytes, ...]:
    names, rows = after.weight_names(), []
    widths = {
        names[n.args[1].name].removesuffix(VALUES): int(n.args[5] if is_op(n, "planish.linear_q") else n.args[4])
        for n in after.graph.nodes
        if is_op(n, "planish.linear_q", "planish.embedding_q")
    }
    for name in before.weights:
        spec = before.weights.spec(name)
        kept = TensorBytes(name, spec.nbytes, spec.nbytes, str(spec.dtype).removeprefix("torch."))
        rows.append(_quantised_bytes(after, name, widths[name], spec.nbytes) if name in widths else kept)
    return tuple(rows)


def _quantised_bytes(program: Program, name: str, bits: int, before: int) -> TensorBytes:
    values, scales = (program.weights.spec(name + part) for part in (VALUES, SCALES))
    zeros = program.weights.spec(name + ZEROS).nbytes * bits // 8 if name + ZEROS in program.weights else 0
    groups = scales.shape[1]
    format = f"int{bits} per channel" if groups == 1 else f"int{bits} per {values.shape[1] // groups}"
    return TensorBytes(name, before, values.nbytes * bits // 8 + scales.nbytes + zeros, format)
