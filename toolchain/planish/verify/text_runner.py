"""Do apps read and write what the model does? The runner that comes with a runtime, asked for tokens and for a text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from planish.tasks.text import load_tokenizer
from planish.verdict import Failed, Metric, NotRun, Passed, Verdict
from planish.verify.lowering import Execution
from planish.verify.together import Steps, alone, asked
from planish_targets.contract import Artifact, Evidence, Target, Unavailable
from planish_targets.runner import Broke, Call, Writes
from planish_targets.text_runner import Answer, HasTextRunner, Question, ask

CHECK = "text_runner"
SENTENCES = 16  # of those that planish ships
TOKENS = 12  # that are written
ODD = (
    "  two spaces first, two\n\nlines\tand a tab ",
    "def f(x):\n    return x**2 + 1_000.5\n",
    "Größe, naïve café — “quotes” … ¿señor?",
    "你好，世界。日本語のテキスト 한국어 Ελληνικά русский",
    "🙂👩‍👩‍👧 e\u0301 ﬁ \u00a0 ½",
    "I'm CAN'T 12345 1,234.50 3rd",
)


def check_text_runner(
    target: Target,
    artifact: Artifact,
    files: Path,
    ends: Collection[int],
    execution: Execution,
    limit: float | None = None,
) -> tuple[Verdict, ...]:
    """`text_runner`, asked alone."""
    return alone(text_runner(target, artifact, files, ends, execution, limit))


def text_runner(
    target: Target,
    artifact: Artifact,
    files: Path,
    ends: Collection[int],
    execution: Execution,
    limit: float | None = None,
) -> Steps[tuple[Verdict, ...]]:
    """Nothing for a target without such a runner.

    Gates the share of plain sentences that its tokenizer splits as the model's own (`limit`, all when left out), and
    that it writes the tokens that planish's runner does. Odd texts are counted, not gated.

    Args:
        artifact: with the tokenizer's files beside it and its caches inside.
        files: where the model's own tokenizer is.
        ends: tokens that end a text.
    """
    if not isinstance(target, HasTextRunner):
        return ()
    command, own = target.text_runner(artifact), target.runner(artifact)
    tokenizer = load_tokenizer(files)
    for reason in (x.reason for x in (command, own) if isinstance(x, Unavailable)):
        return (NotRun(CHECK, reason),)
    if tokenizer is None:
        return (NotRun(CHECK, "the model comes without a tokenizer"),)
    assert not isinstance(command, Unavailable)
    assert not isinstance(own, Unavailable)
    sentences = resources.files("planish.tasks").joinpath("sentences.txt").read_text("utf-8").splitlines()[:SENTENCES]
    prompt = sentences[0]
    ids = _ids(tokenizer, prompt, marked=False)
    if len(ids) + TOKENS >= artifact.context:
        return (NotRun(CHECK, f"the cache holds {artifact.context} tokens, too few for a sentence and an answer"),)
    call = Call({}, writes=Writes(tuple(ids), TOKENS, artifact.context))
    (ran,) = yield from asked(own, artifact, [call], execution.threads, execution.timeout)
    if isinstance(ran, Broke):
        return (Failed(CHECK, own.evidence, f"planish's own runner: {ran.reason}", (), own.device),)
    question = Question((*sentences, *ODD), prompt, tuple(ran.written()))
    told = ask(command, artifact, question, threads=execution.threads, timeout=execution.timeout)
    if isinstance(told, Broke):
        return (Failed(CHECK, command.evidence, told.reason, (), command.device),)
    if told.refused:
        return (NotRun(CHECK, f"{told.device}: {told.refused}; the app needs another tokenizer"),)
    return (_judge(told, question, tokenizer, ends, limit, command.evidence),)


def _judge(
    told: Answer, question: Question, tokenizer: Any, ends: Collection[int], limit: float | None, evidence: Evidence
) -> Verdict:
    equal = [
        told.plain[i] == _ids(tokenizer, text, marked=False) and told.marked[i] == _ids(tokenizer, text, marked=True)
        for i, text in enumerate(question.texts)
    ]
    split = [text for text, same in zip(question.texts, equal, strict=True) if not same]
    odd = next((text for text in split if text in ODD), "")
    metrics = [
        Metric("equal_sentences", sum(equal[:SENTENCES]) / SENTENCES, 1.0 if limit is None else limit, at_most=False),
        Metric("equal_odd_texts", sum(equal[SENTENCES:]) / len(ODD), case=odd),
    ]
    if equal[0]:  # else it reads another prompt, and writes what it likes
        metrics.append(_written(told, question.tokens, ends))
    device = f"{told.device}, {told.tokenizer}"
    if all(m.ok for m in metrics):
        return Passed(CHECK, evidence, tuple(metrics), device)
    if not metrics[0].ok:
        reason = f"its tokenizer makes other tokens of {split[0]!r}; --gate tokenizer=0 ships it all the same"
    else:
        reason = f"it writes {''.join(told.pieces)!r}, planish's own runner {''.join(told.spelled)!r}"
    return Failed(CHECK, evidence, reason, tuple(metrics), device)


def _written(told: Answer, tokens: Sequence[int], ends: Collection[int]) -> Metric:
    """How many of the tokens it wrote, of how many: all that are text, up to one that ends a text."""
    wanted = len(told.spelled)
    for number, token in enumerate(tokens[:wanted], start=1):
        if token in ends:
            wanted = number
            break
    pairs = zip(told.pieces, told.spelled[:wanted], strict=False)
    equal = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(told.pieces), wanted))
    return Metric(
        "equal_tokens",
        float(equal if len(told.pieces) == wanted else min(equal, wanted - 1)),
        float(wanted),
        at_most=False,
    )


def _ids(tokenizer: Any, text: str, *, marked: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=marked)["input_ids"])
