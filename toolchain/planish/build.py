"""The way of one compile, from model to checked artifacts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

from torch import nn

from planish import budget, palettes
from planish.capture import capture
from planish.checkpoint import Loaded, check_finite
from planish.compiled import Compiled, Progress, TargetResult, TensorBytes, nothing_ran
from planish.estimate import check_room, estimate
from planish.examining import Examiner
from planish.generation_files import special_tokens
from planish.keeping import check_kept, keep, stored_formats
from planish.keeping import demand as demand_blocks
from planish.lower import Shared, lower
from planish.quantising import checked, palette_rounding, palettise, quantise, rounding, weight_format
from planish.recipes import RecipeSpec
from planish.request import Request
from planish.requirements import demand
from planish.sharing import share_weights, split, stored_twice
from planish.source import Source, open_source
from planish.tasks import PROGRAMS, Task
from planish.verdict import Verdict
from planish.verify.exam import Exam
from planish.verify.weights import check_program_weights
from planish.wishes import adapted, friendly, recipe_of, told
from planish_passes import pipeline
from planish_passes.infra import Outcome, run_passes
from planish_passes.memory import give_back_memory
from planish_passes.palette import INDICES, TABLES
from planish_passes.program import Program
from planish_passes.quantise import MINIMA, SCALES, VALUES, ZEROS, widths
from planish_passes.weights import WeightFormat, WeightStore
from planish_targets import registry
from planish_targets.contract import Recipe, Target

_MEMORY = 64 << 20  # bytes of quantised weights that stay in memory between the runs of a yardstick


def compile_model(request: Request, progress: Progress, workdir: Path) -> Compiled:
    """Compile one model for all requested targets; artifacts land in `workdir`/<target>.

    Raises:
        PlanishError: the request cannot be met at all (model, task, recipe, target). What fails later is a verdict.
    """
    job = _open(request, progress, workdir)
    made: list[_Made] = []
    for traced in job.traced():
        made.insert(0, job.make(traced, {name: form for m in made for name, form in m.formats.items()}))
    results = tuple(sorted((r for m in made for r in m.results), key=job.order))
    if request.split_weights:
        progress.stage("share", "weights that several programs read")
        results = share_weights(results, job.targets, job.request)
    else:
        job.notes.update(dict.fromkeys(stored_twice([m.weights for m in made], job.targets)))
    if job.request.verify:
        job.notes.update(dict.fromkeys(nothing_ran(results)))
    return Compiled(
        request=job.request,
        source=job.source,
        verdicts=tuple(v for m in made for v in m.verdicts),
        targets=results,
        weights=tuple({w.name: w for m in made for w in m.weights}.values()),
        refused=tuple(r for m in made for o in m.outcomes for r in o.refused),
        steps=tuple(s for m in made for o in m.outcomes for s in o.steps),
        notes=tuple(job.notes),
    )


def _open(request: Request, progress: Progress, workdir: Path) -> _Job:
    request = friendly(request)
    recipe = recipe_of(request)
    targets = split(request, [registry.find(name) for name in dict.fromkeys(request.targets)])
    for target in targets:
        demand(target)
    targets = adapted(targets, request)
    progress.stage("source", request.model)
    source = open_source(
        request.model, task=request.task, revision=request.revision, trust_remote_code=request.trust_remote_code
    )
    if recipe.keeps:
        demand_blocks(request, source)
    if request.activations == "none" and recipe.exact is not None:
        recipe = replace(recipe, divergence=recipe.exact)
    stored = source.checkpoint.keys()
    weights = sum(prod(source.checkpoint.spec(key).shape) for key in stored)
    request = request.model_copy(update={"verify": checked(request, weights)})
    task = PROGRAMS[source.task][-1]
    format = weight_format(request, recipe, task)
    needed = estimate(
        source.checkpoint,
        source.config,
        format,
        [t.name for t in targets],
        rounding=rounding(request, format, task, weights),
        verify=bool(request.verify),
        kept=stored_formats(source) if recipe.keeps else None,
    )
    progress.stage("estimate", str(needed))
    notes = dict.fromkeys((*told(request), *check_room(needed, workdir)))
    if not request.verify:
        notes["checks are off: nothing but hashes says that these artifacts are right"] = None
    return _Job(request, recipe, source, targets, weights, progress, workdir, notes)


@dataclass(frozen=True)
class _Traced:
    """One program of the model, captured and fused, in float.

    Args:
        name: where the model has several; else empty.
        capture: whether it computes what the original model does.
    """

    task: Task
    name: str
    fused: Outcome
    loaded: Loaded
    exam: Exam
    capture: Verdict


@dataclass(frozen=True)
class _Made:
    """What became of one program of the model.

    Args:
        formats: weight name -> what it was quantised to.
    """

    verdicts: list[Verdict]
    outcomes: tuple[Outcome, ...]
    weights: tuple[TensorBytes, ...]
    results: tuple[TargetResult, ...]
    formats: Mapping[str, WeightFormat]


@dataclass(frozen=True)
class _Job:
    """One compile.

    Args:
        count: weights of the model.
        notes: what the user should know, in order.
    """

    request: Request
    recipe: RecipeSpec
    source: Source
    targets: tuple[Target, ...]
    count: int
    progress: Progress
    workdir: Path
    notes: dict[str, None] = field(default_factory=dict)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """One per program of the model."""
        return PROGRAMS[self.source.task]

    def order(self, result: TargetResult) -> int:
        """Place of a result in the report: by target, as requested."""
        return [t.name for t in self.targets].index(result.target.partition("/")[0])

    def traced(self) -> list[_Traced]:
        """All programs, in the order in which they are made, checked against the original, which has left memory."""
        # What the last program writes with is stored as it needs it, for all.
        fused = [(task, *self._fused(task)) for task in reversed(self.tasks)]
        if self.request.verify:
            self.progress.stage("reference", "the original model, run by transformers")
        examiner = Examiner(self.request, self.recipe, self.source, self.workdir / "original")
        exams = examiner.exams([(t, f.program) for t, f, _ in fused])
        made = [
            _Traced(task, self._name(task), outcome, loaded, exam, exam.capture(outcome.program))
            for (task, outcome, loaded), exam in zip(fused, exams, strict=True)
        ]
        give_back_memory()
        return made

    def _name(self, task: Task) -> str:
        return task.entry if len(self.tasks) > 1 else ""

    def _fused(self, task: Task) -> tuple[Outcome, Loaded]:
        self.progress.stage(f"capture {self._name(task)}".strip(), self.source.architecture)
        opened: list[Loaded] = []

        def weights(model: nn.Module) -> WeightStore:
            opened.append(self.source.load(model))
            return opened[-1].store

        asked = {"sequence": max(self.request.lengths)} if self.request.lengths else {}
        captured = capture(self.source.model_class(), self.source.config, task, weights, asked)
        self.notes.update(dict.fromkeys((*opened[-1].notes, *captured.notes)))
        if self.request.verify:
            check_finite(captured.program.weights)
        files = self.source.tokenizer_files if captured.program.states else None
        facts = special_tokens(self.source.config, files)
        return run_passes(replace(captured.program, facts=facts), pipeline.fuse()), opened[-1]

    def make(self, traced: _Traced, given: Mapping[str, WeightFormat]) -> _Made:
        """One program, quantised, and lowered for every target.

        Args:
            given: formats of weights that another program reads as well: a weight has one set of integers.
        """
        task, floating, verdicts = traced.task, traced.fused, [traced.capture]
        quantised, formats = self._quantised(task, floating.program, traced.loaded, verdicts, given)
        program = replace(quantised.program, weights=quantised.program.weights.memoised(_MEMORY))
        bits = max(widths(program).values(), default=0)
        recipe = Recipe(self.recipe.name, bits)
        shared = Shared(self.request, recipe, task, program, self.source, traced.exam, traced.name)
        results = tuple(lower(shared, target, self.progress, self.workdir) for target in self.targets)
        return _Made(verdicts, (floating, quantised), _bytes(floating.program, quantised.program), results, formats)

    def _quantised(
        self,
        task: Task,
        program: Program,
        loaded: Loaded,
        verdicts: list[Verdict],
        given: Mapping[str, WeightFormat],
    ) -> tuple[Outcome, Mapping[str, WeightFormat]]:
        self.progress.stage("quantise", self.recipe.name)
        if self.recipe.keeps:
            outcome = keep(program, loaded.stored)
            if self.request.verify:
                verdicts.append(check_kept(outcome.program, program.weights))
            return outcome, {}
        format = weight_format(self.request, self.recipe, task)
        if format is None:
            return Outcome(program), {}
        how, formats = rounding(self.request, format, task, self.count), dict[str, WeightFormat]()
        folder, before = self.workdir / "quantised" / task.entry, Outcome(program)
        if self.recipe.palette is not None:
            before = self._palettised(task, program, format, folder / "palettes")
        else:
            formats = budget.formats(program, format, self.request, task, self.source, self.progress)
        formats |= {name: form for name, form in given.items() if name in program.weights}
        outcome = quantise(before.program, format, how, self.source, task, folder, self.progress, formats)
        if self.request.verify:
            verdicts.append(check_program_weights(outcome.program, program.weights, how == "nearest"))
        stored = {name: formats.get(name, format) for name in widths(outcome.program)}
        return Outcome(outcome.program, (*before.steps, *outcome.steps)), stored

    def _palettised(self, task: Task, program: Program, others: WeightFormat, folder: Path) -> Outcome:
        how = palette_rounding(self.request, program, task, self.source, self.count)
        formats = palettes.formats(program, self.recipe, others, self.request, task, self.source, self.progress)
        return palettise(program, formats, how, self.source, task, folder, self.progress)


def _bytes(before: Program, after: Program) -> tuple[TensorBytes, ...]:
    bits, rows = widths(after), []
    for name in before.weights:
        spec = before.weights.spec(name)
        kept = TensorBytes(name, spec.nbytes, spec.nbytes, str(spec.dtype).removeprefix("torch."))
        if name in bits:
            kept = _quantised_bytes(after, name, bits[name], spec.nbytes)
        elif name + INDICES in after.weights:
            kept = _palette_bytes(after, name, spec.nbytes)
        rows.append(kept)
    return tuple(rows)


def _palette_bytes(program: Program, name: str, before: int) -> TensorBytes:
    indices, tables = (program.weights.spec(name + part) for part in (INDICES, TABLES))
    entries, channels = tables.shape[1], indices.shape[0] // tables.shape[0]
    after = indices.nbytes * (entries - 1).bit_length() // 8 + tables.nbytes
    return TensorBytes(name, before, after, f"{entries} values per {channels} channels")


def _quantised_bytes(program: Program, name: str, bits: int, before: int) -> TensorBytes:
    values, scales = (program.weights.spec(name + part) for part in (VALUES, SCALES))
    zeros = program.weights.spec(name + ZEROS).nbytes * bits // 8 if name + ZEROS in program.weights else 0
    zeros += program.weights.spec(name + MINIMA).nbytes if name + MINIMA in program.weights else 0
    groups = scales.shape[1]
    format = f"int{bits} per channel" if groups == 1 else f"int{bits} per {values.shape[1] // groups}"
    return TensorBytes(name, before, values.nbytes * bits // 8 + scales.nbytes + zeros, format)
