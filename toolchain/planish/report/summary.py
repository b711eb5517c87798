"""The same for machines: what `planish report --json` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planish.report import accuracy, cards, drifts, placements, sizes, speeds
from planish.report.subject import Subject


def summary(subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """One entry per bundle: JSON values."""
    return [_bundle(subject) for subject in subjects]


def _bundle(subject: Subject) -> dict[str, Any]:
    manifest = subject.manifest
    return {
        "label": subject.label,
        "name": manifest.name,
        "seal": manifest.sha256,
        "created": manifest.created,
        "recipe": manifest.recipe.name,
        "result": manifest.result,
        "targets": {card.target: _target(subject, card) for card in cards.cards(subject)},
        "formats": {row.format: {"before": row.before, "after": row.bytes} for row in sizes.formats(subject.report)},
        "measurements": [
            {"signed": one.signed, "checked": one.checked, **one.bench.model_dump(mode="json")}
            for one in subject.measurements
        ],
        "unshown": subject.unshown,
        "drift": [
            {"of": course.of, "program": course.program, "case": course.case, "lines": _lines(course)}
            for course in drifts.courses([subject])
        ],
    }


def _target(subject: Subject, card: cards.Card) -> dict[str, Any]:
    report = subject.report.of(card.target)
    speed, placement = report.speed, report.placement
    return {
        "result": card.state,
        "evidence": card.grade,
        "bytes": card.bytes,
        "gates": [_gate(gate) for gate in accuracy.gates(card.entry.verdicts)],
        "placement": placements.shares(placement) if placement else None,
        "away": placements.away(placement) if placement else [],
        "calls": [{**vars(row), "tokens_per_second": row.rate} for row in speeds.rows(speed)] if speed else [],
        "load_seconds": speed.load_seconds if speed else None,
        "start_bytes": speed.start_bytes if speed else None,
        "peak_bytes": speed.peak_bytes if speed else None,
    }


def _gate(gate: accuracy.Gate) -> dict[str, Any]:
    return {"check": gate.check, **gate.metric.model_dump(mode="json"), "ok": gate.ok, "allowance_used": gate.used}


def _lines(course: drifts.Course) -> list[dict[str, Any]]:
    return [{"label": line.label, "typical": line.errors} for line in course.lines]
