"""What is asked of language models: the quality of a text's logits, and inputs with caches that the program made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from planish.recipes import RecipeSpec
from planish.request import Gates
from planish.source import Source
from planish.tasks import Task
from planish.tasks.generation import TOKENS
from planish.verdict import Drift, Failed, Metric, Passed, Verdict
from planish.verify.cases import Case
from planish.verify.decoding import PARTS, PROMPT, WHOLE_PROMPTS, decoding, late_case
from planish.verify.diverge import module_outputs, relative_error
from planish.verify.drift import from_model
from planish.verify.greedy import greedy
from planish.verify.logits import LOGITS, divergence, feed, in_calls, one_call, top1, whole
from planish.verify.lowering import Execution
from planish.verify.quality import CAPTURE_LIMIT, asking, held
from planish.verify.together import Steps, walked
from planish_passes.bind import bind
from planish_passes.interpret import Run
from planish_passes.program import Program
from planish_targets.contract import Artifact, Evidence, Numerics, Target

GENERATED = 64  # tokens that follow a prompt one by one


@dataclass(frozen=True)
class DecoderExam:
    """A text, and a prompt with the original model's greedy continuation: in one call, in parts, token by token.

    Args:
        text, story: int64 [1, N]: for quality; prompt and continuation.
        truth: the original model's logits [1, N, V] of "text" and "story".
        recipe, gates: limits.
        given: inputs that stay the same from call to call, made by another program of the model.
        inner: module path -> what it returned for the prompt, by the original model.
    """

    text: Tensor
    story: Tensor
    truth: Mapping[str, Tensor]
    recipe: RecipeSpec
    gates: Gates
    given: Mapping[str, Tensor] = field(default_factory=dict)
    inner: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        text: Tensor,
        longest: int,
        recipe: RecipeSpec,
        gates: Gates,
        given: Mapping[str, Tensor] | None = None,
    ) -> DecoderExam:
        """Ask the original model everything that is needed of it; it is not kept."""
        prompt = text[:, :PROMPT]
        with torch.no_grad(), asking(model, {TOKENS: text}):
            story = torch.cat([prompt, greedy(model, prompt, max(1, min(GENERATED, longest - PROMPT)))], 1)
            truth = {"text": model(input_ids=text).logits, "story": model(input_ids=story).logits}
        return cls(text, story, truth, recipe, gates, given or {}, module_outputs(model, {TOKENS: prompt}))

    def capture(self, program: Program) -> Verdict:
        """The traced program in one call and in parts, against the model in one call."""
        program = held(bind(program, self.given))
        cuts = [*PARTS, 1, 1, self.story.shape[1] - sum(PARTS) - 2]
        found = {"whole": one_call(program, self.story), "parts": in_calls(program, self.story, cuts)}
        del program  # its weights take as much memory as those of the original did
        errors = {name: relative_error(logits, self.truth["story"]) for name, logits in found.items()}
        case = max(errors, key=errors.__getitem__)
        gate = Metric("relative", errors[case], self.gates.capture or CAPTURE_LIMIT, case=case)
        if gate.ok:
            return Passed("capture", Evidence.EXECUTED, (gate,), "torch CPU")
        reason = "the traced program differs from the model"
        return Failed("capture", Evidence.EXECUTED, reason, (gate,), "torch CPU")

    def quality(self, yardstick: Program) -> Steps[Verdict]:
        """KL divergence and top-1 agreement over the positions of the text."""
        alone, truth = bind(yardstick, self.given), self.truth["text"]
        (told,) = yield from walked(alone, [Run(whole(alone, self.text), returns=(LOGITS,))])
        found = told[LOGITS]
        loss = divergence(found, truth)
        limit = self.recipe.divergence if self.gates.divergence is None else self.gates.divergence
        agree = self.recipe.token_agreement if self.gates.agreement is None else self.gates.agreement
        metrics = (
            Metric("kl", float(loss.mean()), limit),
            Metric("kl_max", float(loss.max()), case=f"token {int(loss.argmax())}"),
            Metric("agreement", top1(found, truth), agree, at_most=False),
        )
        if all(m.ok for m in metrics):
            return Passed("quality", Evidence.EXECUTED, metrics, "torch CPU")
        reason = "the program is too far from the original model"
        return Failed("quality", Evidence.EXECUTED, reason, metrics, "torch CPU")

    def drift(self, yardstick: Program) -> Steps[Drift]:
        """Over the prompt, in one call."""
        alone = bind(yardstick, self.given)
        return from_model(alone, self.inner, Case("prompt", whole(alone, self.story[:, :PROMPT])))

    def cases(self, yardstick: Program, form: Program, artifact: Artifact) -> Steps[list[Case]]:
        """A prompt, a second part of it, one token after both, one token at the very beginning."""
        alone = bind(yardstick, self.given)
        (states,) = yield from walked(alone, [Run(whole(alone, self.story[:, : PROMPT + 1]))])
        spans = {
            "prompt": (0, PARTS[0]),
            "chunk": (PARTS[0], sum(PARTS)),
            "token": (PROMPT, PROMPT + 1),
            "first": (0, 1),
        }
        if artifact.options.get(WHOLE_PROMPTS):
            del spans["chunk"]
        made = []
        for name, (start, stop) in spans.items():
            past = {inner: states[outer][:, :, :start].contiguous() for outer, inner in yardstick.states}
            made.append(Case(name, {**self.given, **feed(yardstick, self.story[:, start:stop], past, start)}))
        return made

    def running(
        self, target: Target, artifact: Artifact, yardstick: Program, execution: Execution, numerics: Numerics
    ) -> Steps[tuple[Verdict, ...]]:
        """The artifact fed with its own cache, and at a late position; see `decoding`."""
        alone = bind(yardstick, self.given)
        story = self.story[:, : artifact.context or None]
        late = late_case(alone, int(self.story[0, -1]), artifact.context)
        verdict = yield from decoding(target, artifact, alone, story, late, execution, numerics, self.given)
        return (verdict,)


def opening(task: Task, source: Source, program: Program, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs of one call with the beginning of the task's text and an empty cache.

    Args:
        given: inputs that another program makes; what is not there is made up.
    """
    text = task.samples(source.tokenizer_files, source.config, program.axes["sequence"][1])[0][TOKENS]
    made = {**given, **whole(program, text[:, : sum(PARTS)])}
    generator = torch.Generator().manual_seed(0)
    for port in program.inputs:
        if port.name not in made:
            shape = [d if isinstance(d, int) else 1 if d == "batch" else sum(PARTS) for d in port.shape]
            random = torch.randn(shape, generator=generator)
            made[port.name] = random if port.dtype.is_floating_point else torch.ones(shape, dtype=port.dtype)
    return made
