"""Variants of the ExecuTorch target: other delegates, compiled for and checked by structure, not run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from planish_passes.errors import PlanishError
from planish_passes.infra import Pass
from planish_passes.program import Program
from planish_passes.weights import QuantizedTensor
from planish_targets.contract import (
    Artifact,
    Attribute,
    Capabilities,
    Missing,
    Numerics,
    Placement,
    Recipe,
    Runner,
    Target,
    Unavailable,
)
from planish_targets.executorch.delegates import DELEGATES
from planish_targets.executorch.delegates.delegate import Delegate
from planish_targets.executorch.lower import write
from planish_targets.executorch.pte import INSTALL, PteFile, open_pte
from planish_targets.executorch.registered import backends
from planish_targets.executorch.target import FILE, ExecutorchTarget, facts, missing_runtime, recorded, resident

_BASE = ExecutorchTarget()


@dataclass(frozen=True)
class Variant:
    """One delegate as a target. Grades of its checks are `structural` or `not-run`: no runtime here has the backend."""

    delegate: Delegate
    extra: str = "executorch"

    @property
    def name(self) -> str:
        """Behind the colon stands the delegate."""
        return f"{_BASE.name}:{self.delegate.name}"

    @property
    def summary(self) -> str:
        """One line."""
        return self.delegate.summary

    @property
    def requires(self) -> Mapping[str, str]:
        """executorch, and what the delegate needs besides."""
        return {**_BASE.requires, **self.delegate.requires}

    @property
    def capabilities(self) -> Capabilities:
        """Those of the delegate."""
        return self.delegate.capabilities

    @property
    def variables(self) -> tuple[str, ...]:
        """Those that the delegate reads."""
        return self.delegate.variables

    def missing(self) -> Missing | None:
        """See the delegate."""
        return self.delegate.missing()

    def numerics(self, recipe: Recipe) -> Numerics:
        """See the delegate."""
        return self.delegate.numerics(recipe)

    def passes(self, recipe: Recipe) -> tuple[Pass, ...]:
        """See the delegate."""
        return self.delegate.passes(recipe)

    def lower(self, program: Program, into: Path, recipe: Recipe) -> Artifact:
        """Write `model.pte`.

        Raises:
            PlanishError: an operator has no form here; executorch, or the delegate's SDK, is not installed.
        """
        missing, lacking = missing_runtime(), self.missing()
        if missing or lacking:
            what, hint = (missing, INSTALL) if missing or not lacking else (lacking.what, lacking.mend)
            raise PlanishError(f"lowering to {self.name} is not possible: {what}", f"target {self.name}", hint)
        self.delegate.check(program)
        reasons: dict[str, str] = {}
        written = write(
            program,
            into / FILE,
            facts(program),
            lambda exported, methods: self.delegate.edge(exported, methods, reasons),
        )
        file = open_pte(into / FILE)
        options: dict[str, object] = {
            "inputs": [p.name for p in written.inputs],
            "input_dtypes": [str(p.dtype).removeprefix("torch.") for p in written.inputs],
            "input_shapes": [list(p.shape) for p in written.inputs],
            "outputs": [p.name for p in program.outputs if p.name not in {o for o, _ in program.states}],
            **resident(program, written),
            "planned_bytes": file.planned_bytes(),
            "kernel_modules": list(written.kernels),
            "delegate_modules": dict(written.inner),
            "reasons": {op: reason for op, reason in reasons.items() if op in {o.name for o in file.plan.operators}},
        }
        artifact = Artifact(self.name, into, FILE, options)
        return replace(artifact, notes=(*self._told(self.placement(artifact)), *self.delegate.advice))

    def _told(self, placement: Placement) -> tuple[str, ...]:
        away = Counter(n.op for n in placement.nodes if n.where == "fallback")
        ops = ", ".join(f"{op} ({count})" for op, count in away.items())
        inside, everything = len(placement.nodes) - away.total(), len(placement.nodes)
        told = f"{inside} of {everything} operations are in {self.delegate.backend}"
        told += f"; left to portable kernels: {ops}" if away else ""
        return (f"{self.name} is compile-only: nothing here ran it", told)

    def runner(self, artifact: Artifact) -> Runner | Unavailable:
        """None: planish runs no delegate but XNNPACK's itself. A command of the user's (--runner) can."""
        missing = missing_runtime()
        if missing:
            return Unavailable(missing)
        here, wanted = backends(), self.delegate.backend
        if here is not None and wanted not in here:
            has = ", ".join(here) or "none"
            return Unavailable(f"{wanted} is not registered in the ExecuTorch runtime here, which has {has}")
        return Unavailable(f"compile-only: planish runs no delegate of {wanted} itself")

    def placement(self, artifact: Artifact) -> Placement:
        """Per operation, from the file. Delegates of another backend, none at all, and payloads that break a published
        rule are violations."""
        from planish_targets.executorch.placement import placement

        file, reasons = open_pte(artifact.path), artifact.options.get("reasons", {})
        kernels, inner = recorded(artifact)
        assert isinstance(reasons, dict)
        found = placement(file, kernels, {}, inner, reasons)
        return replace(found, violations=(*self._foreign(file), *found.violations))

    def _foreign(self, file: PteFile) -> tuple[str, ...]:
        wanted = self.delegate.backend
        if not file.plan.delegates:
            return (f"nothing is delegated to {wanted}: every operation runs in portable kernels",)
        others = [(i, d.id) for i, d in enumerate(file.plan.delegates) if d.id != wanted]
        return tuple(f"delegate {i} is one of {other}, not of {wanted}" for i, other in others)

    def read_weights(self, artifact: Artifact) -> Mapping[str, QuantizedTensor]:
        """None: only float weights are encoded."""
        return {}

    def read_attributes(self, artifact: Artifact) -> Mapping[str, Sequence[Attribute]] | Unavailable:
        """Epsilons of the file, of kernels and of the payloads whose format is public."""
        from planish_targets.executorch.attributes import read

        kernels, inner = recorded(artifact)
        found = read(open_pte(artifact.path), kernels, {}, inner)
        return found if isinstance(found, Unavailable) else {artifact.entry: found}

    def inspect(self, path: Path) -> Mapping[str, object] | None:
        """As the target describes every .pte file."""
        return _BASE.inspect(path)


VARIANTS: Mapping[str, Target] = {v.name: v for v in map(Variant, DELEGATES)}
