"""What one compile produced, before it becomes a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from planish.failures.record import Finding
from planish.request import Request
from planish.source import Source
from planish.speed import Speed
from planish.verdict import Drift, Failed, NotRun, Verdict
from planish_passes.infra import Refusal, Step
from planish_targets.contract import Artifact, Placement


@dataclass(frozen=True)
class TensorBytes:
    """A weight before and after quantisation.

    Args:
        name: weight name.
        before: bytes in the checkpoint's dtype as traced (float32).
        after: bytes of integers and scales, or of the float form that is kept.
        format: "int8 per channel", "float32", ...
    """

    name: str
    before: int
    after: int
    format: str


@dataclass(frozen=True)
class TargetResult:
    """One target's artifact and all that is known about it.

    Args:
        target: target name, and behind a slash the program where a model has several ("onnxruntime/decode").
        artifact: what was written; None when lowering was refused (the verdicts say why).
        verdicts: one per check, in the order they ran.
        placement: None when there is no artifact.
        latency: case -> median seconds of one call in the runner (host, not a phone).
        latency_device: what was timed.
        shapes: input name -> shape of the artifact ("sequence" where dynamic).
        axes: dynamic dimension -> (smallest, largest).
        steps: what the target's passes did.
        speed: what the run behind `latency` measured; None when nothing ran.
        drift: how far inner values are off; it gates nothing.
        refusal: what lowering stopped at, when there is no artifact.
        golden_inputs / golden_outputs: case -> name -> tensor (the yardstick's outputs).
    """

    target: str
    artifact: Artifact | None
    verdicts: tuple[Verdict, ...]
    placement: Placement | None = None
    latency: Mapping[str, float] = field(default_factory=dict)
    latency_device: str = ""
    shapes: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)
    axes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    speed: Speed | None = None
    drift: tuple[Drift, ...] = ()
    refusal: Finding | None = None
    golden_inputs: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    golden_outputs: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    @property
    def failed(self) -> tuple[Failed, ...]:
        """The gates that failed."""
        return tuple(v for v in self.verdicts if isinstance(v, Failed))


@dataclass(frozen=True)
class Compiled:
    """One model, one recipe, all targets.

    Args:
        request: what was asked.
        source: where the model came from.
        verdicts: checks of the shared program (capture, weights, quality of the plain yardstick).
        targets: one per requested target, in request order.
        weights: every weight of the shared program.
        refused: what passes left as it was, with reasons (e.g. weights that are not quantised).
        steps: what the shared passes did.
        notes: what the user should know (from capture, source, targets).
    """

    request: Request
    source: Source
    verdicts: tuple[Verdict, ...]
    targets: tuple[TargetResult, ...]
    weights: tuple[TensorBytes, ...]
    refused: tuple[Refusal, ...]
    steps: tuple[Step, ...]
    notes: tuple[str, ...]

    @property
    def failed(self) -> tuple[tuple[str, Failed], ...]:
        """(target or "program", gate) for everything that failed."""
        shared = tuple(("program", v) for v in self.verdicts if isinstance(v, Failed))
        return shared + tuple((t.target, v) for t in self.targets for v in t.failed)


def nothing_ran(results: Sequence[TargetResult]) -> tuple[str, ...]:
    """A note for a bundle whose artifacts nothing could run, though checks were asked for; empty when one ran."""
    made = [r for r in results if r.artifact is not None]
    if not made or any(not isinstance(v, NotRun) for r in made for v in r.verdicts if v.check == "lowering"):
        return ()
    names = ", ".join(r.target for r in made)
    return (f"no artifact of this bundle was run ({names}): what is known of them is their structure",)


class Progress(Protocol):
    """Where a compile tells how far it is. The CLI draws it; `Silent` ignores it."""

    def stage(self, name: str, detail: str = "") -> None:
        """A stage begins (and the one before has ended): "capture", "quantise", "lower", ..."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line of its own."""
        ...


class Silent:
    """Ignores progress."""

    def stage(self, name: str, detail: str = "") -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


Compile = Callable[[Request, Progress], Compiled]
