"""Drift per layer: one row per module, one column per thing that was compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from planish.bundle.part import decode
from planish.report.sizes import block
from planish.report.subject import Drift, Subject

KINDS = {
    "quantisation": "The quantised program, to the original model",
    "lowering": "The artifact, to the quantised program",
}


@dataclass(frozen=True)
class Line:
    """One column.

    Args:
        label: who it is.
        errors: module -> relative error (root mean square).
        colour, dash: numbers that tell it apart; bundles have colours of their own.
    """

    label: str
    errors: dict[str, float]
    colour: int
    dash: int


@dataclass(frozen=True)
class Course:
    """One picture.

    Args:
        of: see `Drift.of`.
        program: where the model has several.
        modules: rows, in order of execution.
        lines: columns.
        missing: (labels, why nothing was measured; may be empty).
        case: inputs.
    """

    of: str
    program: str
    modules: tuple[str, ...]
    lines: tuple[Line, ...]
    missing: tuple[tuple[str, str], ...]
    case: str

    @property
    def title(self) -> str:
        """What was compared with what."""
        return KINDS.get(self.of, self.of) + (f" ({self.program})" if self.program else "")

    def blocks(self) -> tuple[tuple[int, str], ...]:
        """(row, short name) where a block of the model begins."""
        found, last = [], ""
        for row, module in enumerate(self.modules):
            if (here := block(module)) != last:
                found.append((row, here.rpartition(".")[2] or here))
                last = here
        return tuple(found)

    def worst(self) -> tuple[str, str, float] | None:
        """(label, module, error) of the largest finite error."""
        found = [(e, n.label, m) for n in self.lines for m, e in n.errors.items() if math.isfinite(e)]
        if not found:
            return None
        error, label, module = max(found)
        return label, module, error


def courses(subjects: Sequence[Subject]) -> tuple[Course, ...]:
    """Every picture that these bundles have data, or a reason, for."""
    programs = dict.fromkeys(t.partition("/")[2] for s in subjects for t in s.manifest.targets)
    made = (_course(subjects, of, program) for of in KINDS for program in programs)
    return tuple(c for c in made if c.lines or c.missing)


def _course(subjects: Sequence[Subject], of: str, program: str) -> Course:
    known: dict[tuple[tuple[str, float], ...], list[str]] = {}
    owners: list[int] = []
    missing: dict[str, list[str]] = {}
    case = ""
    for number, subject in enumerate(subjects):
        for name in subject.manifest.targets:
            target, _, inside = name.partition("/")
            if inside != program:
                continue
            label = f"{subject.label} {target}".strip()
            found = next((d for d in subject.report.of(name).drift if d.of == of), None)
            if found is None or not found.layers:
                missing.setdefault(found.reason if found else "", []).append(label)
                continue
            case = case or found.case
            errors = tuple(_errors(found).items())
            if errors not in known:
                owners.append(number)
            known.setdefault(errors, []).append(label)
    lines = tuple(
        Line(_joined(labels), dict(errors), owner if len(subjects) > 1 else at, owners[:at].count(owner))
        for at, ((errors, labels), owner) in enumerate(zip(known.items(), owners, strict=True))
    )
    untold = tuple((_joined(labels), reason) for reason, labels in missing.items())
    return Course(of, program, _order(line.errors for line in lines), lines, untold, case)


def _errors(drift: Drift) -> dict[str, float]:
    """Module -> its worst value; what was merged out of all modules has no row."""
    found: dict[str, float] = {}
    for layer in drift.layers:
        if layer.module:
            found[layer.module] = max(found.get(layer.module, 0.0), decode(layer.typical))
    return found


def _joined(labels: list[str]) -> str:
    """`A coreml, directml`: a letter once."""
    told: list[str] = []
    for label in labels:
        letter = label.partition(" ")[0]
        again = " " in label and any(t.startswith(f"{letter} ") for t in told)
        told.append(label.partition(" ")[2] if again else label)
    return ", ".join(told)


def _order(columns: Iterable[dict[str, float]]) -> tuple[str, ...]:
    """Modules of all columns: the longest as it is, what others have beside it put behind its neighbour."""
    ordered: list[str] = []
    for column in sorted(columns, key=len, reverse=True):
        at = -1
        for module in column:
            if module in ordered:
                at = ordered.index(module)
            else:
                at += 1
                ordered.insert(at, module)
    return tuple(ordered)
