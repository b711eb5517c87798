"""How well the artifacts of a language model predict a text, and how far they are from the original model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from planish.compiled import Progress
from planish.language import TASK, Language, Ready, ready
from planish.source import open_source
from planish.tasks.generation import SLOTS, TOKENS
from planish.verify.logits import LOGITS, divergence, top1
from planish.verify.lowering import Execution
from planish_passes.errors import PlanishError
from planish_targets import registry
from planish_targets import runner as protocol
from planish_targets.contract import Evidence, Unavailable


@dataclass(frozen=True)
class Text:
    """What is predicted.

    Args:
        name: a path, or the name of the default.
        sha256: of the whole text in UTF-8.
        tokens: int64 [1, N], from its beginning.
    """

    name: str
    sha256: str
    tokens: Tensor


@dataclass(frozen=True)
class Far:
    """The distance to the original model over the N positions.

    Args:
        kl_mean, kl_max: divergence KL(original || artifact) in nats.
        agreement: share (0..1) of positions with the same most probable token.
    """

    kl_mean: float
    kl_max: float
    agreement: float


@dataclass(frozen=True)
class Scored:
    """One target, or the original.

    Args:
        name: of the target; "original".
        perplexity: exp of the mean negative log-likelihood of tokens 2 to N.
        device, evidence: what ran it; None for the original.
        seconds: wall time inside the artifact.
        far: None without the original.
        reason: why it was not run; everything else is empty then.
    """

    name: str
    perplexity: float | None = None
    device: str = ""
    evidence: Evidence | None = None
    seconds: float | None = None
    far: Far | None = None
    reason: str = ""


def read_text(language: Language, path: Path | None, count: int) -> Text:
    """The first tokens of a file, or of the help texts that come with Python.

    Args:
        language: whose tokenizer is used.
        path: a file in UTF-8; None = `pydoc_data.topics`, whose text depends on the version of Python: hence the hash.
        count: most tokens.

    Raises:
        PlanishError: the file cannot be read, or has less than two tokens.
    """
    name, text = ("pydoc_data.topics", _topics()) if path is None else (str(path), _file(path))
    found = language.text(text[: count * 32])[:count]
    if len(found) < count:
        found = language.text(text)[:count]
    if len(found) < 2:
        raise PlanishError("The text has less than two tokens: nothing to predict.", name, "give a longer text")
    return Text(name, hashlib.sha256(text.encode()).hexdigest(), torch.tensor([found]))


def original_logits(location: str, text: Text, revision: str | None = None) -> Tensor:
    """The original model's logits [1, N, V], float32, by transformers; the model is not kept.

    Raises:
        PlanishError: no such model.
    """
    model = open_source(location, task=TASK, revision=revision).reference()
    with torch.no_grad():
        logits: Tensor = model(input_ids=text.tokens, use_cache=False).logits.float()
    return logits


def score(
    language: Language,
    text: Text,
    targets: Sequence[str],
    truth: Tensor | None,
    execution: Execution,
    progress: Progress,
) -> list[Scored]:
    """Every target in a process of its own; those without artifact or runner come back with a reason.

    Args:
        language: the bundle.
        text: what is predicted.
        targets: named by the user: then one that cannot be run is an error; () = all of the bundle.
        truth: `original_logits`.
        execution: threads, time limit, commands.
        progress: where stages are told.

    Raises:
        PlanishError: a run broke, an artifact computes NaN, or the original has another vocabulary.
    """
    results = []
    for name in targets or tuple(language.bundle.manifest.targets):
        entry = language.bundle.manifest.targets.get(name)
        if not targets and entry is not None and entry.artifact is None:
            results.append(Scored(name, reason="the compile was refused; report.json has the reason"))
            continue
        artifact = language.bundle.artifact(name)
        runner = execution.runner(registry.find(name), artifact)
        found = runner if isinstance(runner, Unavailable) else ready(language.bundle, name, runner)
        if isinstance(found, Unavailable):
            if targets:
                raise PlanishError(f"{name} cannot be run here: {found.reason}.", "--target", "planish doctor")
            results.append(Scored(name, reason=found.reason))
            continue
        progress.stage(f"eval {name}", f"{text.tokens.shape[1]} tokens")
        results.append(_scored(language, found, text, truth, execution))
    return results


def original(truth: Tensor, text: Text) -> Scored:
    """The row of the original model."""
    return Scored("original", perplexity(truth, text.tokens), "transformers, torch CPU")


def perplexity(logits: Tensor, tokens: Tensor) -> float:
    """exp of the mean negative log-likelihood of tokens[:, 1:].

    Args:
        logits: [1, N, V].
        tokens: int64 [1, N].
    """
    chances = logits[0, :-1].double().log_softmax(-1)
    likelihood = chances.gather(-1, tokens[0, 1:, None]).mean()
    return math.exp(min(-float(likelihood), 700.0))  # beyond, a float64 overflows


def _scored(language: Language, found: Ready, text: Text, truth: Tensor | None, execution: Execution) -> Scored:
    count, longest = text.tokens.shape[1], found.longest
    if count > longest:
        hint = f"--tokens {longest}"
        raise PlanishError(f"{count} tokens are more than the model's context of {longest}.", "--tokens", hint)
    one = language.bundle.manifest.request.get("logits") == "all"
    logits, ran = _run(found, text.tokens, [count] if one else [1] * count, execution)
    if logits.shape[1] != count:  # asked for all positions, answers one
        logits, ran = _run(found, text.tokens, [1] * count, execution)
    if bool(logits.isnan().any()):
        where = f"logits of token {int(logits.isnan().any(-1)[0].int().argmax())}"
        raise PlanishError(f"The artifact of {found.artifact.target} computes NaN.", where, "planish verify")
    far = None
    if truth is not None:
        if truth.shape[-1] != logits.shape[-1]:
            what = f"The original has {truth.shape[-1]} tokens in its vocabulary, the bundle {logits.shape[-1]}."
            raise PlanishError(what, "--model", "give the model that the bundle was compiled from")
        loss = divergence(logits, truth)
        far = Far(float(loss.mean()), float(loss.max()), top1(logits, truth))
    seconds = ran.device.get("seconds")
    total = sum(s for runs in seconds.values() for s in runs) if isinstance(seconds, dict) else None
    device = str(ran.device.get("device", found.runner.device))
    return Scored(found.artifact.target, perplexity(logits, text.tokens), device, ran.evidence, total, far)


def _run(found: Ready, tokens: Tensor, cuts: Sequence[int], execution: Execution) -> tuple[Tensor, protocol.Ran]:
    cases: dict[str, Mapping[str, Tensor]] = {}
    at = 0
    for number, length in enumerate(cuts):
        given = {TOKENS: tokens[:, at : at + length], SLOTS: torch.arange(at, at + length)[None]}
        empty = {s.input: torch.zeros(s.shape, dtype=getattr(torch, s.dtype)) for s in found.states}
        cases[f"step{number}"] = {**given, **(empty if number == 0 else {})}
        at += length
    ran = protocol.run(
        found.runner,
        found.artifact,
        cases,
        threads=execution.threads,
        timeout=execution.timeout,
        carry={s.output: s.input for s in found.states},
        returns=(LOGITS,),
    )
    if isinstance(ran, protocol.Broke):
        where = f"{found.artifact.target}, {found.artifact.entry}"
        raise PlanishError(f"{ran.reason[0].upper()}{ran.reason[1:]}.", where, "check the bundle with `planish verify`")
    return torch.cat([ran.outputs[f"step{n}"][LOGITS].float() for n in range(len(cuts))], 1), ran


def _topics() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def _file(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as problem:
        raise PlanishError(f"The text cannot be read: {problem}.", str(path), "give a file in UTF-8") from problem
