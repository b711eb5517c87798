"""What one process of a subject tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from planish.bundle import Bundle
from planish_targets.contract import Evidence

Key = tuple[str, str]  # (measure, case)
Conditions = Mapping[str, str | int | float | bool]


@dataclass(frozen=True)
class Plan:
    """How a subject is measured.

    Args:
        rounds: processes.
        warmups, calls: in each process.
        prompt, new: tokens of a language model: of the prompt, and those that it writes.
        cold: measure loads with an empty page cache, too: a process more per round.
    """

    rounds: int = 5
    warmups: int = 2
    calls: int = 10
    prompt: int = 128
    new: int = 32
    cold: bool = True


@dataclass(frozen=True)
class Told:
    """What one process told.

    Args:
        samples: seconds or bytes.
        counts: tokens of one sample.
        conditions: what to know of a row.
        runtime, versions, evidence: what computed.
    """

    samples: Mapping[Key, Sequence[float]]
    counts: Mapping[Key, int] = field(default_factory=dict)
    conditions: Mapping[Key, Conditions] = field(default_factory=dict)
    runtime: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    evidence: Evidence = Evidence.EXECUTED


class Subject(Protocol):
    """One artifact."""

    @property
    def bundle(self) -> Bundle:
        """Where it is."""
        ...

    @property
    def target(self) -> str:
        """Its target, and the program where a model has several."""
        ...

    def process(self, threads: int, plan: Plan) -> Told:
        """Open it in a process of its own, warm up, measure.

        Raises:
            PlanishError: the process broke.
        """
        ...

    def first_load(self, threads: int) -> tuple[float | None, float | None]:
        """(seconds of a load with an empty page cache, share of pages that was still there); None: not measured."""
        ...

    def sustained(self, threads: int, seconds: float, plan: Plan) -> tuple[str, str, list[tuple[float, float]]]:
        """(measure, case, [(seconds since the beginning, seconds of one call)]), without a pause."""
        ...


def load_and_memory(load: object, peak: object, start: object) -> dict[Key, list[float]]:
    """Samples of what a process tells of itself; what it does not tell, or what makes no sense, is left out."""
    found: dict[Key, list[float]] = {}
    if isinstance(load, (int, float)) and load > 0:
        found["load_warm", ""] = [float(load)]
    if isinstance(peak, int) and peak > 0:
        found["peak_memory", ""] = [float(peak)]
        if isinstance(start, int) and 0 < start < peak:
            found["artifact_memory", ""] = [float(peak - start)]
    return found
