"""What is asked of a program of each kind: which inputs, and what its quality is measured by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from planish_passes.program import Program
from planish_targets.contract import Artifact, Numerics, Target

OFF = "checks are switched off (--no-verify)"


class Exam(Protocol):
    """Checks of one model; the original's answers are computed once."""

    @property
    def given(self) -> Mapping[str, Tensor]:
        """Inputs of the program that another program of the model makes."""
        ...

    def capture(self, program: Program) -> Verdict:
        """The float program against the original model."""
        ...

    def quality(self, yardstick: Program) -> Verdict:
        """A target's yardstick against the original model."""
        ...

    def drift(self, yardstick: Program) -> Drift:
        """How far the yardstick's inner values are from the original model's."""
        ...

    def cases(self, yardstick: Program, form: Program, artifact: Artifact) -> list[Case]:
        """Inputs for an artifact of this form, against the yardstick; they become the golden inputs."""
        ...

    def running(
        self, target: Target, artifact: Artifact, yardstick: Program, execution: Execution, numerics: Numerics
    ) -> tuple[Verdict, ...]:
        """Checks that need more than independent calls."""
        ...


@dataclass(frozen=True)
class EncoderExam:
    """Independent calls over samples of the task."""

    samples: Sequence[Sample]
    pad: int
    longest: int
    model: nn.Module
    recipe: RecipeSpec
    gates: Gates
    metric: str
    truth: dict[str, Outputs] = field(default_factory=dict)
    inner: dict[str, dict[str, list[Tensor]]] = field(default_factory=dict)
    given: Mapping[str, Tensor] = field(default_factory=dict)

    def capture(self, program: Program) -> Verdict:
        """See Exam."""
        edges = edge_cases(self.samples, program.inputs, self.pad, self.longest) if program.axes else self._all(program)
        answers = eager(self.model, edges, [p.name for p in program.outputs])
        return check_capture(program, self.model, edges, answers, self.gates.capture)

    def quality(self, yardstick: Program) -> Verdict:
        """See Exam."""
        cases = self._all(yardstick)
        if not self.truth:
            self.truth.update(eager(self.model, cases, [p.name for p in yardstick.outputs]))
        return check_quality(
            yardstick,
            self.model,
            cases,
            self.truth,
            metric=self.metric,
            cosine=self.recipe.cosine if self.gates.cosine is None else self.gates.cosine,
            agree=self.recipe.agreement if self.gates.agreement is None else self.gates.agreement,
        )

    def drift(self, yardstick: Program) -> Drift:
        """On the shortest of the inputs that the quality is measured on."""
        case = min(self._all(yardstick), key=lambda c: sum(t.numel() for t in c.inputs.values()))
        if case.name not in self.inner:
            self.inner[case.name] = module_outputs(self.model, case.inputs, return_dict=True)
        return from_model(yardstick, self.inner[case.name], case)

    def _all(self, program: Program) -> list[Case]:
        if program.axes:
            return batches(self.samples, program.inputs, self.pad)
        return fixed_cases(self.samples, program.inputs, self.pad, limit=16)

    def cases(self, yardstick: Program, form: Program, artifact: Artifact) -> list[Case]:
        """See Exam."""
        if form.axes and (lengths := artifact.options.get("lengths")):
            assert isinstance(lengths, (tuple, list))
            return named_cases(self.samples, form.inputs, self.pad, [int(n) for n in lengths])
        if form.axes:
            return edge_cases(self.samples, form.inputs, self.pad, form.axes.get("sequence", (0, 0))[1])
        return fixed_cases(self.samples, form.inputs, self.pad)

    def running(
        self, target: Target, artifact: Artifact, yardstick: Program, execution: Execution, numerics: Numerics
    ) -> tuple[Verdict, ...]:
        """Nothing more: every call stands alone."""
        return ()


@dataclass(frozen=True)
class NoExam:
    """The user asked for no checks; each is reported as not run."""

    reason: str = OFF
    given: Mapping[str, Tensor] = field(default_factory=dict)

    def capture(self, program: Program) -> Verdict:
        """Not run."""
        return NotRun("capture", self.reason)

    def quality(self, yardstick: Program) -> Verdict:
        """Not run."""
        return NotRun("quality", self.reason)

    def drift(self, yardstick: Program) -> Drift:
        """Not measured."""
        return Drift("quantisation", reason=self.reason)

    def cases(self, yardstick: Program, form: Program, artifact: Artifact) -> list[Case]:
        """None."""
        return []

    def running(
        self, target: Target, artifact: Artifact, yardstick: Program, execution: Execution, numerics: Numerics
    ) -> tuple[Verdict, ...]:
        """None."""
        return ()
