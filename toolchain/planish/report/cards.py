"""What stands at the top: one verdict for the bundle, one card per target."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from planish.bundle.manifest import TargetEntry
from planish.bundle.verdicts import FailedEntry, NotRunEntry, PassedEntry
from planish.report import accuracy, placements, speeds
from planish.report.accuracy import Gate
from planish.report.placements import Shares
from planish.report.speeds import Row
from planish.report.subject import Subject
from planish_targets.contract import Evidence

WORDS = {"passed": "passed", "failed": "failed", "refused": "refused", "not-run": "not run"}


@dataclass(frozen=True)
class Card:
    """One target in short.

    Args:
        state: "passed", "failed", "refused" (no artifact) or "not-run" (nothing compared its outputs).
        bytes: of the artifact.
        quality, lowering: the gates that answer the two questions.
        timed: see `speeds.headline`.
        open: checks that did not run, with the reason.
    """

    target: str
    state: str
    entry: TargetEntry
    bytes: int | None
    quality: Gate | None
    lowering: Gate | None
    shares: Shares | None
    timed: tuple[str, Row] | None
    failed: tuple[FailedEntry, ...]
    open: tuple[NotRunEntry, ...]

    @property
    def grade(self) -> Evidence:
        """Of the check that ran the artifact."""
        return self.entry.evidence

    @property
    def word(self) -> str:
        """The state in words."""
        return WORDS[self.state]


def cards(subject: Subject) -> tuple[Card, ...]:
    """In the order of the manifest."""
    return tuple(_card(subject, name, entry) for name, entry in subject.manifest.targets.items())


def _card(subject: Subject, name: str, entry: TargetEntry) -> Card:
    placement = subject.report.of(name).placement
    quality, lowering = (accuracy.gates(entry.verdicts, check) for check in ("quality", "lowering"))
    return Card(
        name,
        _state(entry),
        entry,
        entry.artifact.bytes if entry.artifact else None,
        quality[0] if quality else None,
        lowering[0] if lowering else None,
        placements.shares(placement) if placement else None,
        speeds.headline(subject, name),
        tuple(v for v in entry.verdicts if isinstance(v, FailedEntry)),
        tuple(v for v in entry.verdicts if isinstance(v, NotRunEntry)),
    )


def _state(entry: TargetEntry) -> str:
    if entry.artifact is None:
        return "refused"
    if any(isinstance(v, FailedEntry) for v in entry.verdicts):
        return "failed"
    return "passed" if any(isinstance(v, PassedEntry) and v.check == "lowering" for v in entry.verdicts) else "not-run"


def summary(shown: tuple[Card, ...]) -> str:
    """`3 of 4 targets passed, 1 was refused.`"""
    count = Counter(card.state for card in shown)
    total = len(shown)
    said = [f"{count['passed']} of {total} target{'s' if total != 1 else ''} passed every gate"]
    said += [
        f"{number} {verb}"
        for state, one, many in (
            ("failed", "failed", "failed"),
            ("refused", "was refused", "were refused"),
            ("not-run", "was not run", "were not run"),
        )
        if (number := count[state]) and (verb := one if number == 1 else many)
    ]
    return ", ".join(said) + "."


def evidence(shown: tuple[Card, ...]) -> str:
    """How many artifacts were examined how: nothing is rounded up."""
    count = Counter(card.grade for card in shown if card.state != "refused")
    phrases = {
        Evidence.EXECUTED: "ran in the target's own runtime",
        Evidence.EXECUTED_ARM64_EMULATED: "ran in the target's own runtime for arm64 on an emulated CPU",
        Evidence.EMULATED: "ran in a stand-in",
        Evidence.STRUCTURAL: "did not run, but passed a check of the file",
        Evidence.NOT_RUN: "did not run",
    }
    said = [f"{count[grade]} {phrase}" for grade, phrase in phrases.items() if count[grade]]
    return f"Of the artifacts, {', '.join(said)}." if said else "There is no artifact."
