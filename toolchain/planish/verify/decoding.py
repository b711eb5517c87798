"""Does an artifact decode? Fed with its own cache call by call, and at a late position, against the yardstick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from planish.tasks.generation import SLOTS
from planish.verdict import Failed, Metric, NotRun, Passed, Verdict
from planish.verify.cases import Case
from planish.verify.diverge import relative_error
from planish.verify.logits import LOGITS, divergence, empty_cache, feed, top1, whole
from planish.verify.lowering import FLOORS, HALF_STORED, NOISE_MULTIPLE, Execution, flip_noise, outside, rounds
from planish.verify.together import Steps, alone, asked, walked
from planish_passes.interpret import Run
from planish_passes.program import Program
from planish_passes.quantise import SCALES
from planish_targets import runner as protocol
from planish_targets.contract import Artifact, Numerics, Target, Unavailable

OF = (LOGITS,)  # what is compared
PROMPT = 24  # tokens of a prompt
PARTS = (17, 7)  # how a prompt is fed in parts
WHOLE_PROMPTS = "prompt_in_one_call"  # option of artifacts that cannot take a prompt in parts
LATE_BYTES = 64 << 20  # largest cache that is made up to look at late positions
SHAKE = 3e-6  # relative; what int8 kernels are off by before anything is rounded again
SHAKES, SHAKES_LATE = 2, 6  # how often that is tried: with a text, and with one token, which says less
KL_FLOOR, KL_MULTIPLE = 1e-6, 8.0  # how many times the yardstick's own rounding noise an artifact may be off


def late_case(program: Program, token: int, context: int = 0) -> Case:
    """One token behind a made-up cache, as long as the model's context or as `LATE_BYTES` allow.

    A cache inside an artifact, for `context` tokens, cannot be made up: it holds zeros.
    """
    caches = empty_cache(program)
    if context:
        # views of one zero each: many layers of long caches are a lot of zeros
        zeros = {n: t.new_zeros(1).expand(1, t.shape[1], context - 1, t.shape[3]) for n, t in caches.items()}
        return Case("late", feed(program, torch.tensor([[token]]), zeros, context - 1))
    each = sum(int(t.shape[1] * t.shape[3]) * t.element_size() for t in caches.values())
    length = max(1, min(program.axes["past"][1], LATE_BYTES // max(each, 1)) - 3)
    generator = torch.Generator().manual_seed(0)
    past = {n: torch.randn(1, t.shape[1], length, t.shape[3], generator=generator) for n, t in caches.items()}
    return Case("late", feed(program, torch.tensor([[token]]), past, length))


def shaken(program: Program, count: int = SHAKES) -> list[Mapping[str, Tensor]]:
    """Where activations are rounded to integers: scales of weights that are off by `SHAKE`, some times over.

    Which activations fall to the other side of a rounding depends on the last bits of what a kernel computed; how far
    the outputs go with them is a property of the model. Other programs have no such forms.
    """
    if not any(rounds(n) for n in program.graph.nodes):
        return []
    return [_shaken(program, seed) for seed in range(count)]


def _shaken(program: Program, seed: int) -> dict[str, Tensor]:
    generator, store, scales = torch.Generator().manual_seed(seed), program.weights, dict[str, Tensor]()
    for name in [n for n in store if n.endswith(SCALES)]:
        factor = 1 + SHAKE * (2 * torch.rand(store.spec(name).shape, generator=generator) - 1)
        scales[name] = store.read(name) * factor
    return scales


def others(
    inputs: Mapping[str, Tensor], scales: Sequence[Mapping[str, Tensor]], compute: torch.dtype = torch.float32
) -> list[Run]:
    """Runs whose answers differ from the program's by rounding alone: in float64, with shaken scales, and with every
    value rounded to a `compute` that is coarser than float32."""
    found = [Run(inputs, torch.float64, returns=OF), *(Run(inputs, instead=s, returns=OF) for s in scales)]
    return found if compute == torch.float32 else [*found, Run(inputs, round_to=compute, returns=OF)]


@dataclass(frozen=True)
class Truth:
    """What a yardstick says, and how much of it is rounding.

    Args:
        story: logits [1, N, V] of a text in one call.
        late: logits [1, 1, V] of the late case.
        kl: mean divergence that rounding alone makes, not less than `KL_FLOOR`.
        kl_late: largest divergence of the late case that rounding alone makes.
        relative: the same as `kl`, as error of logits, not less than the floors of lowering checks.
    """

    story: Tensor
    late: Tensor
    kl: float
    kl_late: float
    relative: float


def truth_of(program: Program, story: Tensor, late: Case, compute: torch.dtype) -> Steps[Truth]:
    """A yardstick's answers; noise is measured on the beginning of the story."""
    prompt = whole(program, story[:, :PROMPT])
    scales = shaken(program, SHAKES_LATE)
    beginnings, lates = others(prompt, scales[:SHAKES], compute), others(late.inputs, scales)
    plain_ones = [Run(inputs, returns=OF) for inputs in (whole(program, story), prompt, late.inputs)]
    told = yield from walked(program, [*plain_ones, *beginnings, *lates])
    said, plain, lately, *rest = (answer[LOGITS] for answer in told)
    exact, late_exact = rest[: len(beginnings)], rest[len(beginnings) :]
    losses = [float(divergence(plain, o).mean()) for o in exact]
    errors = [relative_error(plain, o.float()) for o in exact]
    flips = flip_noise(program)
    return Truth(
        said,
        lately,
        # Logits that move by a small d have a divergence of about d * d / 2.
        max(KL_FLOOR, flips**2 / 2, *losses),
        max(float(divergence(lately, o).max()) for o in late_exact),
        max(FLOORS[compute], flips, *errors),
    )


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
    """`decoding`, asked alone."""
    return alone(decoding(target, artifact, yardstick, story, late, execution, numerics, given))


def decoding(
    target: Target,
    artifact: Artifact,
    yardstick: Program,
    story: Tensor,
    late: Case,
    execution: Execution,
    numerics: Numerics,
    given: Mapping[str, Tensor] | None = None,
) -> Steps[Verdict]:
    """A prompt in two parts, then token by token, the artifact's own cache handed on; and one late token.

    Gates the mean divergence from the yardstick's one-call answer by the yardstick's own rounding noise.
    """
    runner = execution.runner(target, artifact)
    if isinstance(runner, Unavailable):
        return NotRun("decoding", runner.reason)
    truth = yield from truth_of(yardstick, story, late, runner.compute or numerics.compute)
    cuts = _cuts(artifact, story)
    chained = protocol.Call(
        _chained(artifact, yardstick, story, cuts, given or {}),
        carry={} if artifact.context else dict(yardstick.states),
        returns=OF,
    )
    single = {"late": {**(given or {}), **outside(artifact, yardstick, late.inputs)}}
    calls = [chained, protocol.Call(single, returns=OF, behind=True)]
    ran, lately = yield from asked(runner, artifact, calls, execution.threads, execution.timeout)
    if isinstance(ran, protocol.Broke):
        return Failed("decoding", runner.evidence, ran.reason, (), runner.device)
    device = str(ran.device.get("device", runner.device))
    if isinstance(lately, protocol.Broke):
        return Failed("decoding", runner.evidence, f"at a late position: {lately.reason}", (), device)
    # An artifact may return the logits of the last position of a call only.
    ends = [sum(cuts[: i + 1]) for i in range(len(cuts))]
    found = torch.cat([ran.outputs[f"step{i}"][LOGITS][:, -1:].float() for i in range(len(cuts))], 1)
    wanted = truth.story[:, [e - 1 for e in ends]]
    loss = divergence(found, wanted)
    error = max(truth.relative, HALF_STORED) if numerics.weights == torch.float16 else truth.relative
    behind = divergence(lately.outputs["late"][LOGITS][:, -1:].float(), truth.late[:, -1:])
    metrics = (
        Metric("kl", float(loss.mean()), KL_MULTIPLE * truth.kl),
        Metric("relative", relative_error(found, wanted), NOISE_MULTIPLE * error),
        Metric(
            "kl_late",
            float(behind.max()),
            KL_MULTIPLE * max(truth.kl, truth.kl_late),
            case=f"token {late.inputs[SLOTS].item():.0f}",
        ),
        Metric("kl_max", float(loss.max()), case=f"step {int(loss.argmax())}"),
        Metric("agreement", top1(found, wanted)),
    )
    if all(m.ok for m in metrics):
        return Passed("decoding", ran.evidence, metrics, device)
    here = not (metrics[0].ok and metrics[1].ok)
    where = f"most at step {int(loss.argmax())}" if here else "at a late position"
    reason = f"fed with its own cache, the artifact leaves the program, {where}"
    return Failed("decoding", ran.evidence, reason, metrics, device)


def _cuts(artifact: Artifact, story: Tensor) -> list[int]:
    """Tokens of each call."""
    first = (sum(PARTS),) if artifact.options.get(WHOLE_PROMPTS) else PARTS
    return [*first, *[1] * (story.shape[1] - sum(PARTS))]


def _chained(
    artifact: Artifact, yardstick: Program, story: Tensor, cuts: Sequence[int], given: Mapping[str, Tensor]
) -> dict[str, Mapping[str, Tensor]]:
    calls: dict[str, Mapping[str, Tensor]] = {}
    at = 0
    for number, length in enumerate(cuts):
        past = empty_cache(yardstick) if number == 0 and not artifact.context else {}
        calls[f"step{number}"] = {**given, **feed(yardstick, story[:, at : at + length], past, at)}
        at += length
    return calls
