"""What is asked of a program of each kind: which inputs, and what its quality is measured by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from planish.recipes import RecipeSpec
from planish.request import Gates
from planish.tasks.base import Sample
from planish.verdict import Drift, NotRun, Verdict
from planish.verify.cases import Case, batches, edge_cases, fixed_cases, named_cases
from planish.verify.compare import Outputs
from planish.verify.diverge import module_outputs
from planish.verify.drift import from_model
from planish.verify.lowering import Execution
from planish.verify.quality import check_capture, check_quality, eager
from planish.verify.together import Steps, known
from planish_passes.program import Program
from planish_targets.contract import Artifact, Numerics, Target

OFF = "checks are switched off (--no-verify)"


class Exam(Protocol):
    """Checks of one model; the original's answers are computed once. Most are steps for `together`."""

    @property
    def given(self) -> Mapping[str, Tensor]:
        """Inputs of the program that another program of the model makes."""
        ...

    def capture(self, program: Program) -> Verdict:
        """The float program against the original model."""
        ...

    def quality(self, yardstick: Program) -> Steps[Verdict]:
        """A target's yardstick against the original model."""
        ...

    def drift(self, yardstick: Program) -> Steps[Drift]:
        """How far the yardstick's inner values are from the original model's."""
        ...

    def cases(self, yardstick: Program, form: Program, artifact: Artifact) -> Steps[list[Case]]:
        """Inputs for an artifact of this form, against the yardstick; they become the golden inputs."""
        ...

    def running(
        self, target: Target, artifact: Artifact, yardstick: Program, execution: Execution, numerics: Numerics
    ) -> Steps[tuple[Verdict, ...]]:
        """Checks that need more than independent calls."""
        ...


@dataclass(frozen=True)
class EncoderExam:
    """Independent calls over samples of the task.

    Args:
        original: loads the original model again, to find the layer where a failed check begins.
        edges: its outputs at the limits of the program's shapes.
        truth: its outputs for the samples.
        inner: what its modules returned for the shortest sample, by module path.
    """

    samples: Sequence[Sample]
    pad: int
    longest: int
    original: Callable[[], nn.Module]
    recipe: RecipeSpec
    gates: Gates
    metric: str
    edges: dict[str, Outputs] = field(default_factory=dict)
    truth: dict[str, Outputs] = field(default_factory=dict)
    inner: dict[str, list[Tensor]] = field(default_factory=dict)
    given: Mapping[str, Tensor] = field(default_factory=dict)

    def ask(self, model: nn.Module, program: Program) -> EncoderExam:
        """Ask the original model everything that is needed of it; it is not kept."""
        outputs, cases = [p.name for p in program.outputs], self._all(program)
        self.truth.update(eager(model, cases, outputs))
        self.edges.update(eager(model, self._edges(program), outputs) if program.axes else self.truth)
        self.inner.update(module_outputs(model, _shortest(cases).inputs, return_dict=True))
        return self

    def capture(self, program: Program) -> Verdict:
        """See Exam."""
        cases = self._edges(program) if program.axes else self._all(program)
        return check_capture(program, self.original, cases, self.edges, self.gates.capture)

    def quality(self, yardstick: Program) -> Steps[Verdict]:
        """See Exam."""
        cases = self._all(yardstick)
        return check_quality(
            yardstick,
            self.original,
            cases,
            self.truth,
            metric=self.metric,
            cosine=self.recipe.cosine if self.gates.cosine is None else self.gates.cosine,
            agree=self.recipe.agreement if self.gates.agreement is None else self.gates.agreement,
        )

    def drift(self, yardstick: Program) -> Steps[Drift]:
        """On the shortest of the inputs that the quality is measured on."""
        return from_model(yardstick, self.inner, _shortest(self._all(yardstick)))

    def _edges(self, program: Program) -> list[Case]:
        return edge_cases(self.samples, program.inputs, self.pad, self.longest)

    def _all(self, program: Program) -> list[Case]:
        if program.axes:
            return batches(self.samples, program.inputs, self.pad)
        return fixed_cases(self.samples, program.inputs, self.pad, limit=16)

    def cases(self, yardstick: Program, form: Program, artifact: Artifact) -> Steps[list[Case]]:
        """See Exam."""
        if form.axes and (lengths := artifact.options.get("lengths")):
            assert isinstance(lengths, (tuple, list))
            return known(named_cases(self.samples, form.inputs, self.pad, [int(n) for n in lengths]))
        if form.axes:
            return known(edge_cases(self.samples, form.inputs, self.pad, form.axes.get("sequence", (0, 0))[1]))
        return known(fixed_cases(self.samples, form.inputs, self.pad))

    def running(
        self, target: Target, artifact: Artifact, yardstick: Program, execution: Execution, numerics: Numerics
    ) -> Steps[tuple[Verdict, ...]]:
        """Nothing more: every call stands alone."""
        return known(())


def _shortest(cases: Sequence[Case]) -> Case:
    return min(cases, key=lambda c: sum(t.numel() for t in c.inputs.values()))


@dataclass(frozen=True)
class NoExam:
    """The user asked for no checks; each is reported as not run."""

    reason: str = OFF
    given: Mapping[str, Tensor] = field(default_factory=dict)

    def capture(self, program: Program) -> Verdict:
        """Not run."""
        return NotRun("capture", self.reason)

    def quality(self, yardstick: Program) -> Steps[Verdict]:
        """Not run."""
        return known(NotRun("quality", self.reason))

    def drift(self, yardstick: Program) -> Steps[Drift]:
        """Not measured."""
        return known(Drift("quantisation", reason=self.reason))

    def cases(self, yardstick: Program, form: Program, artifact: Artifact) -> Steps[list[Case]]:
        """None."""
        return known([])

    def running(
        self, target: Target, artifact: Artifact, yardstick: Program, execution: Execution, numerics: Numerics
    ) -> Steps[tuple[Verdict, ...]]:
        """None."""
        return known(())
