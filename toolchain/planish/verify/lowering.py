"""Did lowering break? An artifact, on its own runtime, against the yardstick. Tight: in multiples of rounding noise."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, fx

from planish.speed import Speed, measured
from planish.verdict import Divergence, Drift, Failed, Layer, Metric, NotRun, Passed, Verdict
from planish.verify.cases import Case
from planish.verify.compare import Outputs, worst
from planish.verify.diverge import Layers, against_taps, relative_error
from planish.verify.together import Steps, alone, asked, walked
from planish_passes.errors import PlanishError
from planish_passes.interpret import Run, interpret
from planish_passes.program import Program, op_name
from planish_passes.taps import tap_points, with_taps
from planish_targets import runner as protocol
from planish_targets.contract import Artifact, Evidence, Numerics, Recipe, Runner, Target, Unavailable

NOISE_MULTIPLE = 4.0  # how many times the yardstick's own rounding noise an artifact may be away from it
STEP_LIMITS = {torch.float32: 1e-5, torch.float16: 1e-2}  # relative error of one step, given its own inputs
NORM_LIMITS = {torch.float32: 2e-6, torch.float16: 1e-2}  # tighter: another epsilon changes little
_NORMS = ("aten.layer_norm", "aten.batch_norm", "aten.group_norm", "aten.rms_norm")
HALF_STORED = 1e-4  # of files that store constants (epsilons, scales) as float16, however they are computed
FLIP_NOISE = 5e-3  # end to end, of programs that round activations: flips add up, and differ from run to run
FINE_FLIP_NOISE = 2e-4  # the same, where no input has fewer than 15 bits
FLIP_LIMIT = 2e-3  # of a step that rounds activations to int8: a value on the edge may round the other way
EDGE, EDGE_MULTIPLE = 1e-5, 2.0  # see `edges`
FLOORS = {torch.float32: 2e-6, torch.float16: 1e-3}  # relative; below this, noise itself is not measurable


@dataclass(frozen=True)
class Execution:
    """How to run artifacts: threads, time limit, and the command that stands in for a target's own runner."""

    threads: int = 1
    timeout: float = 600.0
    commands: Mapping[str, str] = field(default_factory=dict)

    def runner(self, target: Target, artifact: Artifact) -> Runner | Unavailable:
        """The user's command for this target, else the target's own. A command must state its grade in device.json;
        `emulated` is all that it earns without."""
        command = self.commands.get(target.name)
        if command:
            return Runner(shlex.split(command), Evidence.EMULATED, "a runner of the user's")
        return target.runner(artifact)


@dataclass(frozen=True)
class Lowered:
    """Verdict of a lowering check, with what it measured on the way.

    Args:
        truth: the yardstick's outputs.
        speed: None when nothing ran to its end.
        drift: how far inner values are off, where the runner shows them.
    """

    verdict: Verdict
    truth: Mapping[str, Outputs]
    speed: Speed | None = None
    drift: tuple[Drift, ...] = ()


def noise(
    cases: Sequence[Case],
    truth: Mapping[str, Outputs],
    exact: Mapping[str, Outputs],
    rounded: Mapping[str, Outputs],
    compute: torch.dtype,
) -> float:
    """Relative rounding noise of a program, the larger of float32 against float64 and, for a coarser `compute`, of
    rounding every intermediate value to it.

    Args:
        cases: what it is measured on.
        truth, exact, rounded: the program's outputs in float32, in float64, and with rounded values ({}: not coarser).
    """
    exact = {case: {n: t for n, t in told.items() if n in truth[case]} for case, told in exact.items()}
    level = max(worst(cases, truth, exact, "relative").value, FLOORS[torch.float32])
    return max(level, worst(cases, rounded, truth, "relative").value, FLOORS[compute]) if rounded else level


def outside(artifact: Artifact, program: Program, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What an artifact is given of a program's inputs: not the caches that it has inside."""
    hidden = inside(artifact, program)
    return {name: tensor for name, tensor in inputs.items() if name not in hidden}


def inside(artifact: Artifact, program: Program) -> set[str]:
    """Inputs and outputs of a program that an artifact keeps to itself."""
    return {port for pair in program.states for port in pair} if artifact.context else set()


def check_lowering(
    target: Target,
    artifact: Artifact,
    yardstick: Program,
    form: Program,
    cases: Sequence[Case],
    *,
    recipe: Recipe,
    numerics: Numerics,
    execution: Execution,
    multiple: float | None = None,
) -> Lowered:
    """`lowering`, asked alone."""
    return alone(
        lowering(
            target,
            artifact,
            yardstick,
            form,
            cases,
            recipe=recipe,
            numerics=numerics,
            execution=execution,
            multiple=multiple,
        )
    )


def lowering(
    target: Target,
    artifact: Artifact,
    yardstick: Program,
    form: Program,
    cases: Sequence[Case],
    *,
    recipe: Recipe,
    numerics: Numerics,
    execution: Execution,
    multiple: float | None = None,
) -> Steps[Lowered]:
    """Run the artifact and compare.

    Args:
        yardstick: the quantised program with the target's numerics.
        form: the program that was lowered; on failure it is lowered again with taps to find the first bad layer.
        multiple: allowed error in multiples of the noise (default `NOISE_MULTIPLE`).
    """
    runner = execution.runner(target, artifact)
    if isinstance(runner, Unavailable):
        truth, _ = yield from _truth(artifact, yardstick, cases, None)
        return Lowered(NotRun("lowering", runner.reason), truth)
    compute = runner.compute or numerics.compute
    truth, level = yield from _truth(artifact, yardstick, cases, compute)
    feeds = {c.name: outside(artifact, yardstick, c.inputs) for c in cases}
    short, names = _shortest_padded(cases, form), [n.name for n in tap_points(form)]
    calls = [
        protocol.Call(feeds, repeat=5 if runner.evidence is Evidence.EXECUTED else 1),
        protocol.Call({short.name: outside(artifact, form, short.inputs)}, taps=names, behind=True),
    ]
    ran, shown = yield from asked(runner, artifact, calls, execution.threads, execution.timeout)
    if isinstance(ran, protocol.Broke):
        return Lowered(Failed("lowering", runner.evidence, ran.reason, (), runner.device), truth)
    device = str(ran.device.get("device", runner.device))
    speed = measured(ran, feeds, device, execution.threads)
    missing = [o for c in cases for o in truth[c.name] if o not in ran.outputs[c.name]]
    if missing:
        reason = f"the runner did not return {', '.join(sorted(set(missing)))}"
        return Lowered(Failed("lowering", ran.evidence, reason, (), device), truth, speed)
    relative, absolute = (worst(cases, ran.outputs, truth, kind) for kind in ("relative", "max_abs"))
    if numerics.weights == torch.float16:
        level = max(level, HALF_STORED)
    level = max(level, flip_noise(yardstick))
    limit = (multiple or NOISE_MULTIPLE) * level
    gate = Metric("relative", relative.value, limit, case=relative.case)
    rows = worst(cases, ran.outputs, truth, "cosine")
    metrics: tuple[Metric, ...] = (
        gate,
        Metric("max_abs", absolute.value, case=absolute.case),
        Metric("cosine", rows.value, case=rows.case),
        Metric("noise", level),
    )
    case = next(c for c in cases if c.name == relative.case)
    local = yield from _local(shown, names, form, short, compute)
    remark = ""
    drift: tuple[Drift, ...] = (Drift("lowering", reason="this runner shows no inner values"),)
    if isinstance(local, protocol.Broke):
        remark = f"the run that shows inner values broke: {local.reason}"
    elif local is not None:
        metrics, drift = (*metrics, local.metric), local.drift
    if all(m.ok for m in metrics):
        verdict: Verdict = Passed("lowering", ran.evidence, metrics, device)
        if remark:
            verdict = Failed("lowering", ran.evidence, f"{remark}; its steps were not checked", metrics, device)
        return Lowered(verdict, truth, speed, drift)
    if isinstance(local, _Local) and not local.metric.ok:
        reason = "a step of the artifact computes something else than the program"
        failed = Failed("lowering", ran.evidence, reason, metrics, device, local.worst)
        return Lowered(failed, truth, speed, drift)
    if artifact.context:
        case = short
    diverged, told = _locate(target, form, case, recipe, execution, limit)
    reason = f"the artifact computes something else than the program{told}{'; ' if remark else ''}{remark}"
    return Lowered(Failed("lowering", ran.evidence, reason, metrics, device, diverged), truth, speed, drift)


def _truth(
    artifact: Artifact, yardstick: Program, cases: Sequence[Case], compute: torch.dtype | None
) -> Steps[tuple[Mapping[str, Outputs], float]]:
    """The yardstick's outputs by case, without caches that the artifact has inside, and the noise of `compute`; 0 where
    that is None."""
    # float64 is slow, and shorter inputs show the noise
    shorter = [] if compute is None else [c for c in cases if c.name != "longest"] or list(cases)
    coarse = [] if compute in (None, torch.float32) else shorter
    returns = [p.name for p in yardstick.outputs if p.name not in inside(artifact, yardstick)]
    runs = [Run(c.inputs, returns=returns) for c in cases]
    runs += [Run(c.inputs, torch.float64, returns=returns) for c in shorter]
    runs += [Run(c.inputs, round_to=compute, returns=returns) for c in coarse]
    told = iter((yield from walked(yardstick, runs)))
    truth, exact, rounded = ({c.name: next(told) for c in some} for some in (cases, shorter, coarse))
    return truth, noise(shorter, truth, exact, rounded, compute) if compute is not None else 0.0


def _shortest_padded(cases: Sequence[Case], form: Program) -> Case:
    fixed = [p for p in form.inputs if p.name in {i for _, i in form.states} and isinstance(p.shape[2], int)]
    if fixed:  # caches inside the artifact, which is fresh: nothing can come before the call
        prompt = next(c for c in cases if c.name == "prompt")
        zeros = {p.name: torch.zeros(1, dtype=p.dtype).expand([int(d) for d in p.shape]) for p in fixed}
        return Case(prompt.name, {**prompt.inputs, **zeros})
    chunk = [c for c in cases if c.name == "chunk"]  # of a language model: several tokens behind a cache
    if chunk:
        return chunk[0]
    padded = [c for c in cases if c.mask is not None and not bool(c.mask.all())]
    return min(padded or cases, key=lambda c: sum(t.numel() for t in c.inputs.values()))


@dataclass(frozen=True)
class _Local:
    metric: Metric
    worst: Divergence
    drift: tuple[Drift, ...]


def _local(
    ran: protocol.Ran | protocol.Broke, names: Sequence[str], form: Program, case: Case, compute: torch.dtype
) -> Steps[_Local | protocol.Broke | None]:
    """Worst step of the artifact by multiples of its limit; None for runners that show no inner values."""
    if isinstance(ran, protocol.Broke):
        return ran
    shown = {n: t for n, t in ran.outputs.get(case.name, {}).items() if n in set(names)}
    if not shown:
        return None
    steps, off = Layers(case, shown, compute), Layers(case, shown)
    # The program runs on, step by step, from the artifact's values, so that errors do not add up and each step can be
    # held to a tight limit; and once from its own.
    yield from walked(form, [Run(case.inputs, tap=steps.tap, forced=shown), Run(case.inputs, tap=off.tap)])
    if not steps.found:
        return None
    limits = [_step_limit(s, form, compute) for s in steps.found]
    if over := {s.node for s, limit in zip(steps.found, limits, strict=True) if not s.largest <= limit}:
        ties = edges(form, case, shown, over)
        limits = [max(limit, ties.get(s.node, 0.0)) for s, limit in zip(steps.found, limits, strict=True)]
    ratios = [s.largest / limit for s, limit in zip(steps.found, limits, strict=True)]
    first = next((i for i, r in enumerate(ratios) if not r <= 1), ratios.index(max(ratios)))
    at = steps.found[first]
    drift = (Drift("lowering", case.name, tuple(off.found)), Drift("steps", case.name, tuple(steps.found)))
    worst = Divergence(at.node, at.op, at.module, at.largest)
    return _Local(Metric("step", max(ratios), 1.0, case=at.node), worst, drift)


def _step_limit(step: Layer, form: Program, compute: torch.dtype) -> float:
    flips = any(n.name == step.node and rounds(n) for n in form.graph.nodes)
    limits = NORM_LIMITS if step.op in _NORMS else STEP_LIMITS
    return max(limits[compute], FLIP_LIMIT if flips else 0.0)


def edges(program: Program, case: Case, found: Mapping[str, Tensor], names: set[str]) -> dict[str, float]:
    """How far values that lie exactly on the edge of two codes move each of these steps, at most by `EDGE_MULTIPLE`.

    A few values on the edge are in `FLIP_LIMIT`. Where a linear reads a table of integers, with nothing or a norm of
    equal weights between, as many as one in ten may be: both then have few different values. Inputs are moved by
    `EDGE`, which is what kernels compute scales to: only what lies on an edge changes its code.

    Args:
        found: the artifact's inner values.
        names: of linears that round activations; others are left out.

    Returns:
        Node name -> relative error.
    """
    given = [n for n in program.graph.nodes if n.op == "placeholder"][-len(program.inputs) :]
    read = {n.name: case.inputs[p.name] for n, p in zip(given, program.inputs, strict=True)}
    nodes = {n.name: n for n in program.graph.nodes if n.name in names and rounds(n)}
    sources = {n.args[0].name for n in nodes.values()}

    def keep(node: fx.Node, value: Tensor) -> None:
        if node.name in sources:
            read[node.name] = found.get(node.name, value)

    interpret(program, case.inputs, tap=keep, forced=found)
    return {name: EDGE_MULTIPLE * _moved(program, node, read[node.args[0].name]) for name, node in nodes.items()}


def _moved(program: Program, node: fx.Node, x: Tensor) -> float:
    weights = program.weight_names()
    given = [program.weights.read(weights[a.name]) if isinstance(a, fx.Node) else a for a in node.args[1:]]
    truth, generator = torch.ops.planish.linear_q(x, *given), torch.Generator().manual_seed(0)
    signs = (torch.randint(0, 2, x.shape, generator=generator) * 2 - 1 for _ in range(4))
    return max(relative_error(torch.ops.planish.linear_q(x * (1 + EDGE * s), *given), truth) for s in signs)


def flip_noise(program: Program) -> float:
    """Relative error of outputs, made by values that may fall to either side of a step; 0 = nothing is rounded."""
    found = {n.args[6] for n in program.graph.nodes if rounds(n)}
    return 0.0 if not found else FINE_FLIP_NOISE if found == {"int8_token_pair"} else FLIP_NOISE


def rounds(node: fx.Node) -> bool:
    """True for a linear whose runtime rounds activations."""
    return node.op == "call_function" and op_name(node) == "planish.linear_q" and node.args[6] != "none"


def _locate(
    target: Target, form: Program, case: Case, recipe: Recipe, execution: Execution, limit: float
) -> tuple[Divergence | None, str]:
    with tempfile.TemporaryDirectory(prefix="planish-taps-") as folder:
        try:
            artifact = target.lower(with_taps(form), Path(folder), recipe)
        except PlanishError as problem:
            return None, f" (no layer can be named: {problem.what})"
        runner = execution.runner(target, artifact)
        if isinstance(runner, Unavailable):
            return None, ""
        ran = protocol.run(runner, artifact, {case.name: case.inputs}, timeout=execution.timeout)
    if isinstance(ran, protocol.Broke):
        return None, f" (no layer can be named: {ran.reason})"
    diverged = against_taps(form, case, ran.outputs[case.name], limit)
    if diverged is not None and diverged.relative_error <= limit:
        return None, "; a fresh lowering keeps to it in every layer: these files were changed after they were written"
    return diverged, ""
