"""Programs of one model over one file of weights: what both read is stored once, and every program runs as before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from planish.compiled import TargetResult, TensorBytes
from planish.request import Request
from planish.verdict import Failed, Metric, NotRun, Passed, Verdict
from planish.verify.exam import OFF
from planish.verify.lowering import Execution
from planish_passes.errors import PlanishError
from planish_targets import registry
from planish_targets import runner as protocol
from planish_targets.contract import Artifact, Runner, SplitsWeights, Target, Unavailable

CHECK = "shared_weights"
_WORTH = 0.01  # share of all bytes below which nobody is told


def split(request: Request, targets: Sequence[Target]) -> tuple[Target, ...]:
    """The targets, with weights in files of their own where that was asked for and can be.

    Raises:
        PlanishError: it was asked for, and none of them can.
    """
    if not request.split_weights:
        return tuple(targets)
    if not any(isinstance(t, SplitsWeights) for t in targets):
        able = ", ".join(name for name, t in registry.targets().items() if isinstance(t, SplitsWeights))
        what = f"{targets[0].name} does not write weights into a file of their own on request"
        raise PlanishError(what, "--split-weights", f"leave it out, or choose a target that does: {able}")
    return tuple(t.with_split_weights() if isinstance(t, SplitsWeights) else t for t in targets)


def stored_twice(programs: Sequence[Sequence[TensorBytes]], targets: Sequence[Target]) -> tuple[str, ...]:
    """What the user should know of weights that every program of the model holds, where a target can store them once.

    Args:
        programs: the weights of each program.
    """
    able = [t.name for t in targets if isinstance(t, SplitsWeights)]
    common = set(programs[0]).intersection(*programs[1:]) if len(programs) > 1 else set()
    nbytes = sum(w.after for w in common)
    if not able or nbytes < _WORTH * sum(w.after for p in programs for w in p) or not nbytes:
        return ()
    told = f"{', '.join(able)}: each of the {len(programs)} programs holds {nbytes:,} bytes of the same weights"
    return (f"{told}; --split-weights stores them once, for apps that can open such a file (docs/executorch.md)",)


def share_weights(
    results: Sequence[TargetResult], targets: Sequence[Target], request: Request
) -> tuple[TargetResult, ...]:
    """The results, over one file of weights for all programs of a target where that saves bytes.

    Each program then runs its golden inputs once more and must answer with the same bits as before.
    """
    made = list(results)
    for target in targets:
        own = [i for i, r in enumerate(made) if r.target.partition("/")[0] == target.name]
        if isinstance(target, SplitsWeights) and len(own) > 1 and all(made[i].artifact is not None for i in own):
            for i, result in zip(own, _shared(target, [made[i] for i in own], request), strict=True):
                made[i] = result
    return tuple(made)


def _shared(target: SplitsWeights, results: Sequence[TargetResult], request: Request) -> list[TargetResult]:
    runs = [_Run.of(target, result, request) for result in results]
    before = [run.answer() for run in runs]
    shared = target.share_weights([run.artifact for run in runs])
    if all(new.options == run.artifact.options for new, run in zip(shared, runs, strict=True)):
        return [replace(result, artifact=new) for result, new in zip(results, shared, strict=True)]
    return [
        replace(result, artifact=new, verdicts=(*result.verdicts, run.compared(answer, new)))
        for result, run, answer, new in zip(results, runs, before, shared, strict=True)
    ]


@dataclass(frozen=True)
class _Run:
    """One program on its golden inputs."""

    result: TargetResult
    artifact: Artifact
    execution: Execution
    runner: Runner | Unavailable

    @classmethod
    def of(cls, target: SplitsWeights, result: TargetResult, request: Request) -> _Run:
        assert result.artifact is not None
        execution = Execution(request.threads, request.timeout, request.runner)
        runner = execution.runner(target, result.artifact) if request.verify else Unavailable(OFF)
        return cls(result, result.artifact, execution, runner)

    def answer(self, artifact: Artifact | None = None) -> protocol.Ran | protocol.Broke | Unavailable:
        """What it returns, over its own files or others."""
        if isinstance(self.runner, Unavailable):
            return self.runner
        return protocol.run(
            self.runner,
            artifact or self.artifact,
            self.result.golden_inputs,
            threads=self.execution.threads,
            timeout=self.execution.timeout,
        )

    def compared(self, before: protocol.Ran | protocol.Broke | Unavailable, artifact: Artifact) -> Verdict:
        """Over the shared file, against what it returned over its own."""
        after = self.answer(artifact)
        for answer in (before, after):
            if isinstance(answer, Unavailable):
                return NotRun(CHECK, answer.reason)
            if isinstance(answer, protocol.Broke):
                assert isinstance(self.runner, Runner)
                return Failed(CHECK, self.runner.evidence, answer.reason, (), self.runner.device)
        assert isinstance(before, protocol.Ran)
        assert isinstance(after, protocol.Ran)
        device = str(after.device.get("device", ""))
        told = {f"{case}/{name}": tensor for case, named in before.outputs.items() for name, tensor in named.items()}
        again = {f"{case}/{name}": tensor for case, named in after.outputs.items() for name, tensor in named.items()}
        other = [n for n, t in told.items() if n not in again or not torch.equal(t, again[n])]
        metrics = (Metric("equal_outputs", float(len(told) - len(other)), float(len(told)), at_most=False),)
        if other:
            reason = f"over the shared file of weights it returns other bits: {other[0]}"
            return Failed(CHECK, after.evidence, reason, metrics, device)
        return Passed(CHECK, after.evidence, metrics, device)
