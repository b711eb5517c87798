"""Check a written bundle again: every hash, every artifact on the stored inputs against the stored outputs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from planish.bundle import Bundle, open_bundle
from planish.bundle.verdicts import verdict_of
from planish.compiled import Progress, TargetResult
from planish.tasks.generation import SLOTS
from planish.verdict import Failed, Metric, NotRun, Passed, Verdict
from planish.verify.cases import Case
from planish.verify.compare import worst
from planish.verify.lowering import FLOORS, NOISE_MULTIPLE, Execution
from planish_targets import registry
from planish_targets import runner as protocol
from planish_targets.contract import Evidence, Unavailable


@dataclass(frozen=True)
class BundleReport:
    """What a second look at a bundle found.

    Args:
        verdicts: checks of the bundle as a whole (hashes).
        targets: one per examined target.
    """

    verdicts: tuple[Verdict, ...]
    targets: tuple[TargetResult, ...]

    @property
    def failed(self) -> tuple[tuple[str, Failed], ...]:
        """("bundle" or target, gate) for everything that failed."""
        shared = tuple(("bundle", v) for v in self.verdicts if isinstance(v, Failed))
        return shared + tuple((t.target, v) for t in self.targets for v in t.failed)


def verify_bundle(
    path: Path | str,
    *,
    targets: Sequence[str] | None,
    runner: Mapping[str, str],
    threads: int,
    timeout: float,
    progress: Progress,
) -> BundleReport:
    """Re-check a bundle.

    Args:
        path: the bundle.
        targets: which targets to run; None = all in the bundle.
        runner: target -> command that stands in for the built-in runner.
        threads: threads inside the runtimes.
        timeout: seconds until a runner is stopped.
        progress: where stages are told.

    Raises:
        PlanishError: no bundle, a damaged manifest, or a target that the bundle does not have.
    """
    bundle = open_bundle(Path(path))
    progress.stage("hashes", f"{len(bundle.manifest.files)} files")
    problems = bundle.check_hashes()
    if problems:
        reason = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        # Damaged files are not handed to native runtimes.
        return BundleReport((Failed("hashes", Evidence.EXECUTED, reason),), ())
    passed = Passed("hashes", Evidence.EXECUTED, (Metric("files", float(len(bundle.manifest.files))),))
    execution = Execution(threads, timeout, runner)
    results = []
    for name in bundle.named(targets or ()):
        progress.stage(f"verify {name}")
        results.append(_target(bundle, name, execution))
    return BundleReport((passed,), tuple(results))


def _target(bundle: Bundle, name: str, execution: Execution) -> TargetResult:
    if name in bundle.manifest.targets and bundle.manifest.targets[name].artifact is None:
        return TargetResult(name, None, (NotRun("lowering", "the compile was refused; report.json has the reason"),))
    artifact = bundle.artifact(name)
    given, expected = bundle.golden(name)
    if not given:
        return TargetResult(name, artifact, (NotRun("lowering", "the bundle stores no golden inputs"),))
    if artifact.context:  # calls build on each other
        given = dict(sorted(given.items(), key=lambda case: int(case[1][SLOTS].min())))
    target = registry.find(name)
    runner = execution.runner(target, artifact)
    if isinstance(runner, Unavailable):
        return TargetResult(name, artifact, (NotRun("lowering", runner.reason),))
    ran = protocol.run(runner, artifact, given, threads=execution.threads, timeout=execution.timeout)
    if isinstance(ran, protocol.Broke):
        return TargetResult(name, artifact, (Failed("lowering", runner.evidence, ran.reason),))
    cases = [Case(case, inputs) for case, inputs in given.items()]
    missing = sorted({o for c in expected for o in expected[c] if o not in ran.outputs[c]})
    device = str(ran.device.get("device", runner.device))
    if missing:
        reason = f"the runner did not return {', '.join(missing)}"
        return TargetResult(name, artifact, (Failed("lowering", ran.evidence, reason, (), device),))
    relative, absolute, rows = (worst(cases, ran.outputs, expected, k) for k in ("relative", "max_abs", "cosine"))
    gate = Metric("relative", relative.value, _limit(bundle, name), case=relative.case)
    metrics = (
        gate,
        Metric("max_abs", absolute.value, case=absolute.case),
        Metric("cosine", rows.value, case=rows.case),
    )
    reason = "the artifact does not reproduce the stored outputs"
    verdict: Verdict = Passed("lowering", ran.evidence, metrics, device)
    if not gate.ok:
        verdict = Failed("lowering", ran.evidence, reason, metrics, device)
    latency = {c: statistics.median(s) for c in given if (s := ran.seconds(c))}
    return TargetResult(name, artifact, (verdict,), latency=latency, latency_device=device)


def _limit(bundle: Bundle, name: str) -> float:
    """The limit that the compile gated with; where it did not run here, the loosest float16 one."""
    for entry in bundle.manifest.targets[name].verdicts:
        verdict = verdict_of(entry)
        if verdict.check == "lowering" and not isinstance(verdict, NotRun):
            found = [m.limit for m in verdict.metrics if m.name == "relative" and m.limit is not None]
            if found:
                return found[0]
    return NOISE_MULTIPLE * max(FLOORS.values())
