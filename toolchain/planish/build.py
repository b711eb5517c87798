"""The way of one compile, from model to checked artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from planish.capture import capture
from planish.checkpoint import check_finite
from planish.compiled import Compiled, Progress, TargetResult, TensorBytes
from planish.recipes import RecipeSpec, find_recipe
from planish.request import Request
from planish.requirements import demand
from planish.source import Source, open_source
from planish.tasks import TASKS, Task
from planish.tasks.base import Sample
from planish.verdict import Failed, Metric, NotRun, Passed, Verdict
from planish.verify.cases import Case, batches, edge_cases, fixed_cases
from planish.verify.compare import Outputs
from planish.verify.lowering import Execution, check_lowering
from planish.verify.quality import check_capture, check_quality, eager
from planish.verify.weights import check_artifact_weights, check_program_weights
from planish_passes import pipeline
from planish_passes.errors import PlanishError
from planish_passes.infra import run_passes
from planish_passes.program import Program
from planish_passes.quantise import SCALES, VALUES
from planish_passes.weights import WeightStore
from planish_targets import registry
from planish_targets.contract import Evidence, Placement, Target

_MEMORY = 128 << 20  # bytes of quantised weights that stay in memory between the runs of a yardstick


@dataclass(frozen=True)
class _Shared:
    """What all targets of one compile have in common."""

    request: Request
    recipe: RecipeSpec
    task: Task
    program: Program
    samples: Sequence[Sample]
    pad: int
    model: nn.Module
    cases: Sequence[Case]
    truth: Mapping[str, Outputs]
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
    progress.stage("capture", source.architecture)
    notes: dict[str, None] = {}

    def weights(model: nn.Module) -> WeightStore:
        loaded = source.load(model)
        notes.update(dict.fromkeys(loaded.notes))
        return loaded.store

    captured = capture(source.model_class(), source.config, task, weights)
    check_finite(captured.program.weights)
    floating = run_passes(captured.program, pipeline.fuse())
    progress.stage("reference", "the original model, run by transformers")
    shared, verdicts = _reference(request, recipe, source, task, floating.program)
    progress.stage("quantise", recipe.name)
    quantised = run_passes(floating.program, pipeline.quantise(recipe.format))
    if recipe.format is not None:
        verdicts.append(check_program_weights(quantised.program, floating.program.weights))
    shared = _with_program(shared, quantised.program)
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


def _reference(
    request: Request, recipe: RecipeSpec, source: Source, task: Task, program: Program
) -> tuple[_Shared, list[Verdict]]:
    longest = _longest(program)
    samples = task.samples(source.folder, source.config, longest)
    pad = int(getattr(source.config, "pad_token_id", 0) or 0)
    model = source.reference()
    names = [p.name for p in program.outputs]
    if program.axes:
        cases = batches(samples, program.inputs, pad)
        edges = edge_cases(samples, program.inputs, pad, longest)
    else:
        cases = fixed_cases(samples, program.inputs, pad, limit=16)
        edges = cases
    verdict = check_capture(program, model, edges, eager(model, edges, names), request.gates.capture)
    return _Shared(request, recipe, task, program, samples, pad, model, cases, eager(model, cases, names)), [verdict]


def _longest(program: Program) -> int:
    if "sequence" in program.axes:
        return program.axes["sequence"][1]
    return next((int(p.shape[1]) for p in program.inputs if p.name == "input_ids"), 0)


def _with_program(shared: _Shared, program: Program) -> _Shared:
    return replace(shared, program=replace(program, weights=program.weights.memoised(_MEMORY)))


def _target(shared: _Shared, target: Target, progress: Progress, workdir: Path) -> TargetResult:
    request, recipe = shared.request, shared.recipe.for_target
    numerics = target.numerics(recipe)
    sizes = _sizes(shared, target)
    progress.stage(f"lower {target.name}", "fixed shapes" if sizes else "dynamic shapes")
    yardstick = run_passes(shared.program, pipeline.yardstick(numerics.weights, numerics.activations)).program
    folder = workdir / target.name
    folder.mkdir(parents=True)
    try:
        if recipe.bits and recipe.bits not in target.capabilities.bits:
            raise PlanishError(
                f"{target.name} cannot encode {recipe.bits}-bit weights",
                f"recipe {recipe.name!r}",
                f"widths that it can encode: {', '.join(map(str, sorted(target.capabilities.bits)))}",
            )
        outcome = run_passes(
            yardstick, (*pipeline.for_target(target.capabilities.keeps, sizes), *target.passes(recipe))
        )
        artifact = target.lower(outcome.program, folder, recipe)
    except PlanishError as refusal:
        reason = f"{refusal.what} ({refusal.where}); {refusal.hint}"
        return TargetResult(target.name, None, (Failed("lower", Evidence.STRUCTURAL, reason),))
    progress.stage(f"verify {target.name}")
    verdicts = [_quality(shared, yardstick, (numerics.weights, numerics.activations))]
    if recipe.bits:
        verdicts.append(check_artifact_weights(shared.program, target.read_weights(artifact)))
    placement = target.placement(artifact)
    verdicts.append(_check_placement(placement, request.gates.placement))
    cases = _cases(shared, outcome.program)
    lowered = check_lowering(
        target,
        artifact,
        yardstick,
        outcome.program,
        cases,
        recipe=recipe,
        numerics=numerics,
        execution=Execution(request.threads, request.timeout, request.runner),
        multiple=request.gates.lowering,
    )
    verdicts.append(lowered.verdict)
    return TargetResult(
        target.name,
        artifact,
        tuple(verdicts),
        placement,
        lowered.latency,
        lowered.device,
        {p.name: p.shape for p in outcome.program.inputs},
        outcome.program.axes,
        outcome.steps,
        {c.name: c.inputs for c in cases},
        lowered.truth,
    )


def _sizes(shared: _Shared, target: Target) -> dict[str, int] | None:
    """Fixed sizes for a target, or None where its shapes stay dynamic."""
    request, can = shared.request, target.capabilities
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


def _cases(shared: _Shared, form: Program) -> list[Case]:
    if form.axes:
        return edge_cases(shared.samples, form.inputs, shared.pad, form.axes.get("sequence", (0, 0))[1])
    return fixed_cases(shared.samples, form.inputs, shared.pad)


def _quality(shared: _Shared, yardstick: Program, key: tuple[torch.dtype, str]) -> Verdict:
    # Targets with the same numerics share one yardstick, hence one answer.
    if key not in shared.quality:
        gates = shared.request.gates
        shared.quality[key] = check_quality(
            yardstick,
            shared.model,
            shared.cases,
            shared.truth,
            metric=shared.task.metric,
            cosine=shared.recipe.cosine if gates.cosine is None else gates.cosine,
            agree=shared.recipe.agreement if gates.agreement is None else gates.agreement,
        )
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
    rows = []
    quantised = {n.removesuffix(VALUES) for n in after.weights if n.endswith(VALUES)}
    for name in before.weights:
        spec = before.weights.spec(name)
        if name in quantised:
            size = after.weights.spec(name + VALUES).nbytes + after.weights.spec(name + SCALES).nbytes
            rows.append(TensorBytes(name, spec.nbytes, size, "int8 per channel"))
        else:
            rows.append(TensorBytes(name, spec.nbytes, spec.nbytes, str(spec.dtype).removeprefix("torch.")))
    return tuple(rows)
