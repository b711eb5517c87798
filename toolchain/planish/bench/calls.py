"""Encoders, and single programs of models that have several: the golden inputs, called again and again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from planish.bench import cold
from planish.bench.process import Conditions, Key, Plan, Told, load_and_memory
from planish.bundle import Bundle
from planish.speed import TOKENS
from planish.verify.golden import golden_inputs
from planish_passes.errors import PlanishError
from planish_targets import runner as protocol
from planish_targets.contract import Artifact, Runner

MOST = 200_000  # calls of a long run


@dataclass(frozen=True)
class Calls:
    """A program that is called with the golden inputs, through the runner protocol."""

    bundle: Bundle
    target: str
    artifact: Artifact
    runner: Runner
    timeout: float

    def process(self, threads: int, plan: Plan) -> Told:
        """See Subject."""
        cases = self._cases()
        ran = self._run(cases, plan.warmups + plan.calls, threads)
        samples: dict[Key, Sequence[float]] = {("latency", c): ran.seconds(c)[plan.warmups :] for c in cases}
        conditions: dict[Key, Conditions] = {
            ("latency", c): {"tokens": given[TOKENS].numel()} for c, given in cases.items() if TOKENS in given
        }
        load, peak, start = (ran.device.get(k) for k in ("load_seconds", "peak_rss_bytes", "start_rss_bytes"))
        samples |= load_and_memory(load, peak, start)
        versions = ran.device.get("versions")
        return Told(
            {key: found for key, found in samples.items() if found},
            conditions=conditions,
            runtime=str(ran.device.get("device", self.runner.device)),
            versions={str(k): str(v) for k, v in versions.items()} if isinstance(versions, Mapping) else {},
            evidence=ran.evidence,
        )

    def first_load(self, threads: int) -> tuple[float | None, float | None]:
        """See Subject."""
        left = cold.drop(self.artifact.folder)
        if not cold.is_cold(left):
            return None, left
        case, given = next(iter(self._cases().items()))
        load = self._run({case: given}, 1, threads).device.get("load_seconds")
        return (float(load), left) if isinstance(load, (int, float)) and load > 0 else (None, left)

    def sustained(self, threads: int, seconds: float, plan: Plan) -> tuple[str, str, list[tuple[float, float]]]:
        """See Subject; the longest of the inputs."""
        ran = self._run(self._cases(), 3, threads)
        case = max(self._cases(), key=lambda c: min(ran.seconds(c)))
        count = min(MOST, max(1, round(seconds / min(ran.seconds(case)))))
        timed = self._run({case: self._cases()[case]}, count, threads, extra=10 * seconds).seconds(case)
        at, course = 0.0, []
        for one in timed:
            course.append((at, one))
            at += one
        return "latency", case, course

    def _cases(self) -> dict[str, Mapping[str, Tensor]]:
        """Golden inputs, one of each shape."""
        given = golden_inputs(self.bundle, self.target)
        seen: dict[tuple[object, ...], str] = {}
        for case, tensors in given.items():
            seen.setdefault((case.rstrip("0123456789"), *((n, t.shape) for n, t in sorted(tensors.items()))), case)
        return {case: given[case] for case in seen.values()}

    def _run(
        self, cases: Mapping[str, Mapping[str, Tensor]], repeat: int, threads: int, extra: float = 0.0
    ) -> protocol.Ran:
        ran = protocol.run(
            self.runner, self.artifact, cases, repeat=repeat, threads=threads, timeout=self.timeout + extra
        )
        if isinstance(ran, protocol.Broke):
            raise PlanishError(
                f"The run broke: {ran.reason}.", self.target, "planish verify shows more; then try again"
            )
        if not all(ran.seconds(c) for c in cases):
            what = "The runner tells no times."
            raise PlanishError(what, self.target, "device.json needs `seconds`: docs/runner-protocol.md")
        return ran
