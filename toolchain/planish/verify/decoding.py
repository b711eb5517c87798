"""Checks of language models: distributions over the next token, and caches that grow call by call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from planish.recipes import RecipeSpec
from planish.request import Gates
from planish.source import Source
from planish.tasks import Task
from planish.tasks.generation import SLOTS, TOKENS
from planish.verdict import Drift, Failed, Metric, NotRun, Passed, Verdict
from planish.verify.cases import Case
from planish.verify.diverge import module_outputs, relative_error
from planish.verify.drift import from_model
from planish.verify.greedy import greedy
from planish.verify.lowering import FLOORS, HALF_STORED, NOISE_MULTIPLE, Execution, flip_noise, rounds
from planish.verify.quality import CAPTURE_LIMIT, asking, held
from planish_passes.bind import bind
from planish_passes.interpret import interpret
from planish_passes.program import Program
from planish_passes.quantise import SCALES
from planish_passes.weights import WeightStore
from planish_targets import runner as protocol
from planish_targets.contract import Artifact, Evidence, Numerics, Target, Unavailable

LOGITS = "logits"
_F32 = torch.float32
PROMPT, GENERATED = 24, 64  # tokens of a prompt, and tokens that follow one by one
PARTS = (17, 7)  # how a prompt is fed in parts
WHOLE_PROMPTS = "prompt_in_one_call"  # option of artifacts that cannot take a prompt in parts
LATE_BYTES = 64 << 20  # largest cache that is made up to look at late positions
SHAKE = 3e-6  # relative; what int8 kernels are off by before anything is rounded again
KL_FLOOR, KL_MULTIPLE = 1e-6, 8.0  # how many times the yardstick's own rounding noise an artifact may be off


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

    def quality(self, yardstick: Program) -> Verdict:
        """KL divergence and top-1 agreement over the positions of the text."""
        found, truth = one_call(bind(yardstick, self.given), self.text), self.truth["text"]
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

    def drift(self, yardstick: Program) -> Drift:
        """Over the prompt, in one call."""
        alone = bind(yardstick, self.given)
        return from_model(alone, self.inner, Case("prompt", feed(alone, self.story[:, :PROMPT], empty_cache(alone))))

    def cases(self, yardstick: Program, form: Program, artifact: Artifact) -> list[Case]:
        """A prompt, a second part of it, one token after both, one token at the very beginning."""
        alone = bind(yardstick, self.given)
        states = interpret(alone, feed(alone, self.story[:, : PROMPT + 1], empty_cache(alone)))
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
    ) -> tuple[Verdict, ...]:
        """The artifact fed with its own cache, and at a late position; see `check_decoding`."""
        alone = bind(yardstick, self.given)
        story = self.story[:, : artifact.context or None]
        late = late_case(alone, int(self.story[0, -1]), artifact.context)
        return (check_decoding(target, artifact, alone, story, late, execution, numerics, self.given),)


def opening(task: Task, source: Source, program: Program, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs of one call with the beginning of the task's text and an empty cache.

    Args:
        given: inputs that another program makes; what is not there is made up.
    """
    text = task.samples(source.tokenizer_files, source.config, program.axes["sequence"][1])[0][TOKENS]
    made = {**given, **feed(program, text[:, : sum(PARTS)], empty_cache(program))}
    generator = torch.Generator().manual_seed(0)
    for port in program.inputs:
        if port.name not in made:
            shape = [d if isinstance(d, int) else 1 if d == "batch" else sum(PARTS) for d in port.shape]
            random = torch.randn(shape, generator=generator)
            made[port.name] = random if port.dtype.is_floating_point else torch.ones(shape, dtype=port.dtype)
    return made


def feed(program: Program, tokens: Tensor, past: Mapping[str, Tensor], start: int = 0) -> dict[str, Tensor]:
    """Inputs of one call: new tokens [1, Q] at the slots from `start` on, and the cache so far."""
    slots = torch.arange(start, start + tokens.shape[1])[None]
    given = {TOKENS: tokens, SLOTS: slots, **past}
    return {p.name: given[p.name] for p in program.inputs if p.name in given}


def empty_cache(program: Program) -> dict[str, Tensor]:
    """Cache inputs of length 0, batch 1."""
    inner = {i for _, i in program.states}
    sizes = {"batch": 1, "past": 0}
    return {
        p.name: torch.zeros([sizes[d] if isinstance(d, str) else d for d in p.shape], dtype=p.dtype)
        for p in program.inputs
        if p.name in inner
    }


def one_call(program: Program, tokens: Tensor, compute: torch.dtype = _F32, **how: torch.dtype) -> Tensor:
    """Logits [1, N, V] of a program for a whole text."""
    return interpret(program, feed(program, tokens, empty_cache(program)), compute=compute, **how)[LOGITS]  # type: ignore[arg-type]


def in_calls(program: Program, tokens: Tensor, cuts: Sequence[int]) -> Tensor:
    """The same, in several calls that hand the cache on."""
    past, at, logits = empty_cache(program), 0, []
    for length in cuts:
        result = interpret(program, feed(program, tokens[:, at : at + length], past, at))
        past = {inner: result[outer] for outer, inner in program.states}
        logits.append(result[LOGITS])
        at += length
    return torch.cat(logits, 1)


def divergence(found: Tensor, truth: Tensor) -> Tensor:
    """Kullback-Leibler divergence KL(truth || found) in nats, per position: [positions] float64."""
    p, q = truth.double().log_softmax(-1), found.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).flatten()


def top1(found: Tensor, truth: Tensor) -> float:
    """Share (0..1) of positions whose most probable token is the same."""
    return float((found.argmax(-1) == truth.argmax(-1)).double().mean())


def late_case(program: Program, token: int, context: int = 0) -> Case:
    """One token behind a made-up cache, as long as the model's context or as `LATE_BYTES` allow.

    A cache inside an artifact, for `context` tokens, cannot be made up: it holds zeros.
    """
    caches = empty_cache(program)
    if context:
        zeros = {n: t.new_zeros(1, t.shape[1], context - 1, t.shape[3]) for n, t in caches.items()}
        return Case("late", feed(program, torch.tensor([[token]]), zeros, context - 1))
    each = sum(int(t.shape[1] * t.shape[3]) * t.element_size() for t in caches.values())
    length = max(1, min(program.axes["past"][1], LATE_BYTES // max(each, 1)) - 3)
    generator = torch.Generator().manual_seed(0)
    past = {n: torch.randn(1, t.shape[1], length, t.shape[3], generator=generator) for n, t in caches.items()}
    return Case("late", feed(program, torch.tensor([[token]]), past, length))


def noise(program: Program, tokens: Tensor, compute: torch.dtype) -> tuple[float, float]:
    """What rounding alone makes: mean divergence, and relative error of logits.

    float32 against float64, or every value rounded to `compute`; not less than the floors of lowering checks.
    """
    truth = one_call(program, tokens)
    others = [one_call(program, tokens, torch.float64), *(one_call(p, tokens) for p in shaken(program))]
    if compute != _F32:
        others.append(one_call(program, tokens, round_to=compute))
    losses = [float(divergence(truth, o).mean()) for o in others]
    errors = [relative_error(truth, o.float()) for o in others]
    flips = flip_noise(program)
    # Logits that move by a small d have a divergence of about d * d / 2.
    return max(KL_FLOOR, flips**2 / 2, *losses), max(FLOORS[compute], flips, *errors)


def shaken(program: Program) -> list[Program]:
    """Where activations are rounded to integers: the program with scales of weights off by `SHAKE`, twice.

    Which activations fall to the other side of a rounding depends on the last bits of what a kernel computed; how far
    the outputs go with them is a property of the model. Other programs have no such forms.
    """
    if not any(rounds(n) for n in program.graph.nodes):
        return []
    return [replace(program, weights=_shaken(program.weights, seed)) for seed in range(2)]


def _shaken(store: WeightStore, seed: int) -> WeightStore:
    generator = torch.Generator().manual_seed(seed)
    for name in [n for n in store if n.endswith(SCALES)]:
        spec = store.spec(name)
        factor = 1 + SHAKE * (2 * torch.rand(spec.shape, generator=generator) - 1)
        store = store.with_tensor(name, store.read(name) * factor)
    return store


def check_decoding(
    target: Target,
    artifact: Artifact,
    yardstick: Program,
    story: Tensor,
    late: Case,
    execution: Execution,
    numerics: Numerics,
    given: Mapping[str, Tensor] | None = None,
) -> Verdict:
    """A prompt in two parts, then token by token, the artifact's own cache handed on; and one late token.

    Gates the mean divergence from the yardstick's one-call answer by the yardstick's own rounding noise.
    """
    runner = execution.runner(target, artifact)
    if isinstance(runner, Unavailable):
        return NotRun("decoding", runner.reason)
    truth = one_call(yardstick, story)
    first = (sum(PARTS),) if artifact.options.get(WHOLE_PROMPTS) else PARTS
    cuts = [*first, *[1] * (story.shape[1] - sum(PARTS))]
    chained: dict[str, Mapping[str, Tensor]] = {}
    at = 0
    for number, length in enumerate(cuts):
        past = empty_cache(yardstick) if number == 0 and not artifact.context else {}
        chained[f"step{number}"] = {**(given or {}), **feed(yardstick, story[:, at : at + length], past, at)}
        at += length
    ran = protocol.run(
        runner,
        artifact,
        chained,
        threads=execution.threads,
        timeout=execution.timeout,
        carry={} if artifact.context else dict(yardstick.states),
        returns=(LOGITS,),
    )
    if isinstance(ran, protocol.Broke):
        return Failed("decoding", runner.evidence, ran.reason, (), runner.device)
    device = str(ran.device.get("device", runner.device))
    # An artifact may return the logits of the last position of a call only.
    ends = [sum(cuts[: i + 1]) for i in range(len(cuts))]
    found = torch.cat([ran.outputs[f"step{i}"][LOGITS][:, -1:].float() for i in range(len(cuts))], 1)
    wanted = truth[:, [e - 1 for e in ends]]
    late_truth, late_exact = (interpret(yardstick, late.inputs, compute=c)[LOGITS] for c in (_F32, torch.float64))
    lately = [late_exact, *(interpret(p, late.inputs)[LOGITS] for p in shaken(yardstick))]
    alone = protocol.run(
        runner,
        artifact,
        {"late": {**(given or {}), **late.inputs}},
        threads=execution.threads,
        timeout=execution.timeout,
        returns=(LOGITS,),
    )
    if isinstance(alone, protocol.Broke):
        return Failed("decoding", runner.evidence, f"at a late position: {alone.reason}", (), device)
    loss = divergence(found, wanted)
    level, error = noise(yardstick, story[:, :PROMPT], runner.compute or numerics.compute)
    if numerics.weights == torch.float16:
        error = max(error, HALF_STORED)
    limit = KL_MULTIPLE * level
    late_limit = max(limit, *(KL_MULTIPLE * float(divergence(late_truth, other).max()) for other in lately))
    behind = divergence(alone.outputs["late"][LOGITS][:, -1:].float(), late_truth[:, -1:])
    metrics = (
        Metric("kl", float(loss.mean()), limit),
        Metric("relative", relative_error(found, wanted), NOISE_MULTIPLE * error),
        Metric("kl_late", float(behind.max()), late_limit, case=f"token {late.inputs[SLOTS].item():.0f}"),
        Metric("kl_max", float(loss.max()), case=f"step {int(loss.argmax())}"),
        Metric("agreement", top1(found, wanted)),
    )
    if all(m.ok for m in metrics):
        return Passed("decoding", ran.evidence, metrics, device)
    here = not (metrics[0].ok and metrics[1].ok)
    where = f"most at step {int(loss.argmax())}" if here else "at a late position"
    reason = f"fed with its own cache, the artifact leaves the program, {where}"
    return Failed("decoding", ran.evidence, reason, metrics, device)
