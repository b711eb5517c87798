"""What a check measured by the way: how long calls took, and how much memory they needed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from planish_targets.runner import Ran

TOKENS = "input_ids"


@dataclass(frozen=True)
class Speed:
    """One process of a runner, on the machine that compiled; it says nothing about a phone.

    Args:
        device: what computed, for people.
        versions: package -> version, as the runner tells them.
        threads: threads inside the runtime.
        seconds: case -> wall seconds of each call in order; the first one warms up.
        tokens: case -> tokens that one call reads, padding included; empty for programs that read none.
        load_seconds: to open the artifact.
        peak_bytes: largest resident size of the process, with Python and the runtime.
        start_bytes: the same before the artifact was opened.
    """

    device: str
    versions: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    seconds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)
    load_seconds: float | None = None
    peak_bytes: int | None = None
    start_bytes: int | None = None

    def medians(self) -> dict[str, float]:
        """Case -> median seconds of one call."""
        return {case: statistics.median(timed) for case, timed in self.seconds.items()}


def measured(ran: Ran, inputs: Mapping[str, Mapping[str, Tensor]], device: str, threads: int) -> Speed:
    """What a run tells; a runner need not tell everything.

    Args:
        ran: the run.
        inputs: case -> name -> tensor.
        device: what computed.
        threads: that the runner was asked to use.
    """
    versions, told = ran.device.get("versions"), ran.device
    return Speed(
        device,
        {str(k): str(v) for k, v in versions.items()} if isinstance(versions, Mapping) else {},
        threads,
        {case: tuple(timed) for case in inputs if (timed := ran.seconds(case))},
        {case: given[TOKENS].numel() for case, given in inputs.items() if TOKENS in given},
        _number(told.get("load_seconds")),
        _count(told.get("peak_rss_bytes")),
        _count(told.get("start_rss_bytes")),
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
