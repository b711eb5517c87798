"""Failed gates as records hold them: from a compile that just ended, or from a bundle that was kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from planish.bundle.manifest import Manifest
from planish.bundle.verdicts import VerdictEntry, verdict_of
from planish.failures.record import FailedGate, Model, Record, Refused
from planish.report.subject import open_subject
from planish.verdict import Failed

_WORST = 3  # layers that a failed gate names


class _Layer(Protocol):
    @property
    def node(self) -> str: ...
    @property
    def op(self) -> str: ...
    @property
    def module(self) -> str: ...
    @property
    def typical(self) -> float | str: ...


class _Drift(Protocol):
    @property
    def of(self) -> str: ...
    @property
    def layers(self) -> Sequence[_Layer]: ...


def failed_gate(target: str, verdict: Failed, drifts: Sequence[_Drift]) -> FailedGate:
    """A failed gate with the layers that are off most.

    Args:
        target: its name, or "program".
        drifts: of the same target.
    """
    at = verdict.diverged
    return FailedGate(
        target=target,
        check=verdict.check,
        reason=verdict.reason,
        metrics=tuple(
            f"{m.name} {m.value:.4g} {'>' if m.at_most else '<'} limit {m.limit:g}"
            + (f" (case {m.case})" if m.case else "")
            for m in verdict.metrics
            if not m.ok and m.limit is not None
        ),
        node=at.node if at else "",
        op=at.op if at else "",
        module=at.module if at else "",
        error=at.relative_error if at else None,
        drift=tuple(_row(d, layer) for d in drifts for layer in _worst(d)),
    )


def record_of_bundle(path: Path) -> Record:
    """What a bundle says of the gates that failed in its compile, in the form of a record.

    Raises:
        PlanishError: no bundle, or it is damaged.
    """
    subject = open_subject(path)
    made, report = subject.manifest, subject.report
    gates = [failed_gate("program", v, ()) for v in _failed(made.verdicts)]
    for name, target in made.targets.items():
        gates += [failed_gate(name, v, report.of(name).drift) for v in _failed(target.verdicts)]
    return Record(
        ended="gate failed",
        began=made.created,
        output=str(path.absolute()),
        request={**made.request, "targets": [*_targets(made)], "recipe": made.recipe.name},
        stages=(("bundle", str(path)),),
        notes=made.notes,
        gates=tuple(gates),
        refused=tuple(Refused(pass_name="", node=r.node, module=r.module, reason=r.reason) for r in report.refused),
        model=Model(task=made.task, architecture=made.source.architecture, config={}),
        python=made.tools.python,
        platform=made.tools.platform,
        versions=dict(made.tools.packages),
    )


def _targets(made: Manifest) -> dict[str, None]:
    return dict.fromkeys(name.partition("/")[0] for name in made.targets)


def _failed(entries: Sequence[VerdictEntry]) -> list[Failed]:
    return [v for v in map(verdict_of, entries) if isinstance(v, Failed)]


def _worst(drift: _Drift) -> list[_Layer]:
    off = [layer for layer in drift.layers if float(layer.typical) != 0]
    return sorted(off, key=lambda layer: -float(layer.typical))[:_WORST]


def _row(drift: _Drift, layer: _Layer) -> str:
    return f"{drift.of}: {float(layer.typical):.2g} in {layer.module or '(top)'} ({layer.op}, {layer.node})"
