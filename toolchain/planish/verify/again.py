"""Check a written bundle again: every hash, every artifact on the stored inputs against the stored outputs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from planish.bundle import Bundle, open_bundle
from planish.compiled import Progress, TargetResult
from planish.trust.check import Signer, Trusted
from planish.trust.policy import Demands
from planish.verdict import Failed, Metric, NotRun, Passed, Verdict
from planish.verify.golden import check_golden, golden_inputs
from planish.verify.lowering import Execution
from planish_targets import registry
from planish_targets import runner as protocol
from planish_targets.contract import Evidence, Unavailable


@dataclass(frozen=True)
class BundleReport:
    """What a second look at a bundle found.

    Args:
        verdicts: checks of the bundle as a whole (hashes, signature, policy).
        targets: one per examined target; results of devices are among their verdicts.
        signer: who signed it; None when that was not asked, or is not so.
    """

    verdicts: tuple[Verdict, ...]
    targets: tuple[TargetResult, ...]
    signer: Signer | None = None

    @property
    def failed(self) -> tuple[tuple[str, Failed], ...]:
        """("bundle" or target, gate) for everything that failed."""
        shared = tuple(("bundle", v) for v in self.verdicts if isinstance(v, Failed))
        return shared + tuple((t.target, v) for t in self.targets for v in t.failed)


@dataclass(frozen=True)
class Ask:
    """What is asked of a bundle beyond its hashes.

    Args:
        signers: whose signature it must have; None = it need not be signed.
        devices: whose results count.
        policy: rules that it must keep; they name signers and devices themselves.
        run: run every artifact on the stored inputs.
        tokenizer: libraries of apps must split texts as the model's own tokenizer does.
    """

    signers: Trusted | None = None
    devices: Trusted = field(default_factory=Trusted)
    policy: Demands | None = None
    run: bool = True
    tokenizer: bool = False


def verify_bundle(
    path: Path | str,
    *,
    targets: Sequence[str] | None,
    runner: Mapping[str, str],
    threads: int,
    timeout: float,
    progress: Progress,
    ask: Ask | None = None,
) -> BundleReport:
    """Re-check a bundle.

    Args:
        path: the bundle.
        targets: which targets to run; None = all in the bundle.
        runner: target -> command that stands in for the built-in runner.
        threads: threads inside the runtimes.
        timeout: seconds until a runner is stopped.
        progress: where stages are told.
        ask: signature, policy, results of devices.

    Raises:
        PlanishError: no bundle, a damaged manifest, a target that the bundle does not have, or a signature that nobody
            said to trust.
    """
    from planish.trust.evidence import judge_recorded  # which compares with what this package has
    from planish.trust.signed import check_policy, check_signature
    from planish.verify.tokenizer import check_tokenizer

    bundle, ask = open_bundle(Path(path)), ask or Ask()
    progress.stage("hashes", f"{len(bundle.manifest.files)} files")
    problems = bundle.check_hashes()
    if problems:
        reason = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        # Damaged files are not handed to native runtimes.
        return BundleReport((Failed("hashes", Evidence.EXECUTED, reason),), ())
    verdicts: list[Verdict] = [Passed("hashes", Evidence.EXECUTED, (Metric("files", len(bundle.manifest.files)),))]
    signers = ask.policy.signers if ask.policy else ask.signers
    signer = None
    if signers is not None:
        progress.stage("signature")
        verdict, signer = check_signature(bundle, signers)
        verdicts.append(verdict)
        if signer is None:  # nor are files of strangers
            return BundleReport(tuple(verdicts), ())
    sent = judge_recorded(bundle, ask.policy.devices if ask.policy else ask.devices)
    if ask.policy is not None:
        verdicts += (broken := check_policy(bundle, ask.policy, sent))
        if any(isinstance(v, Failed) for v in broken):
            return BundleReport(tuple(verdicts), (), signer)
    split: dict[str, Verdict] = {}
    if ask.tokenizer:
        progress.stage("tokenizer")
        split = check_tokenizer(bundle, timeout)
        verdicts.append(split["bundle"])
    results = []
    for name in bundle.named(targets or ()):
        progress.stage(f"verify {name}")
        result = _target(bundle, name, Execution(threads, timeout, runner) if ask.run else None)
        more = [s.verdict for s in sent if s.target == name] + ([split[name]] if name in split else [])
        results.append(replace(result, verdicts=(*result.verdicts, *more)))
    return BundleReport(tuple(verdicts), tuple(results), signer)


def _target(bundle: Bundle, name: str, execution: Execution | None) -> TargetResult:
    if name in bundle.manifest.targets and bundle.manifest.targets[name].artifact is None:
        return TargetResult(name, None, (NotRun("lowering", "the compile was refused; report.json has the reason"),))
    artifact = bundle.artifact(name)
    if execution is None:
        return TargetResult(name, artifact, (NotRun("lowering", "nobody asked for a run (--no-run)"),))
    given = golden_inputs(bundle, name)
    if not given:
        return TargetResult(name, artifact, (NotRun("lowering", "the bundle stores no golden inputs"),))
    runner = execution.runner(registry.find(name), artifact)
    if isinstance(runner, Unavailable):
        return TargetResult(name, artifact, (NotRun("lowering", runner.reason),))
    ran = protocol.run(runner, artifact, given, threads=execution.threads, timeout=execution.timeout)
    if isinstance(ran, protocol.Broke):
        return TargetResult(name, artifact, (Failed("lowering", runner.evidence, ran.reason),))
    device = str(ran.device.get("device", runner.device))
    verdict = check_golden(bundle, name, ran.outputs, ran.evidence, device)
    latency = {c: statistics.median(s) for c in given if (s := ran.seconds(c))}
    return TargetResult(name, artifact, (verdict,), latency=latency, latency_device=device)
