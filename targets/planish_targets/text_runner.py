"""Runners for language models that come with a runtime and that apps use as they are: what is asked of one.

The inside is a command like that of the runner protocol. In: `question.json` {"path", "options", "threads", "texts",
"prompt", "tokens"}. Out: `answer.json` with the fields of `Answer`; or `error.json` and a non-zero exit.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from planish_passes.errors import PlanishError
from planish_targets.contract import Artifact, Runner, Unavailable
from planish_targets.runner import Broke, execute
from planish_targets.serve import Call


@dataclass(frozen=True)
class Question:
    """What is asked.

    Args:
        texts: to be split into tokens.
        prompt: text to continue, greedily.
        tokens: how planish's own runner continues it; as many are asked for.
    """

    texts: tuple[str, ...]
    prompt: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """What a runner said.

    Args:
        device: what it is, for people.
        tokenizer: name of the file that its tokenizer reads.
        plain, marked: tokens of each text, without and with what the tokenizer puts around a text.
        prompt_tokens: of the prompt, by its own count.
        pieces: text of each token behind the prompt, up to an end token or one that alone is no text.
        spelled: text of each of the question's tokens by the runner's tokenizer, as far as they are text.
        refused: why it reads none of the tokenizer's files; the rest is empty then.
    """

    device: str
    tokenizer: str = ""
    plain: Sequence[Sequence[int]] = ()
    marked: Sequence[Sequence[int]] = ()
    prompt_tokens: int = 0
    pieces: Sequence[str] = ()
    spelled: Sequence[str] = ()
    refused: str = ""


@runtime_checkable
class HasTextRunner(Protocol):
    """A target whose runtime comes with one."""

    def text_runner(self, artifact: Artifact) -> Runner | Unavailable:
        """The command that asks it."""
        ...

    def fit_tokenizer(self, folder: Path) -> tuple[str, ...]:
        """Change the tokenizer's files in an artifact's folder where its tokenizer reads them wrongly; says what."""
        ...


def ask(
    runner: Runner, artifact: Artifact, question: Question, *, threads: int = 1, timeout: float = 600.0
) -> Answer | Broke:
    """Ask in a process of its own.

    Args:
        runner: what `HasTextRunner.text_runner` named.
        artifact: with the tokenizer's files beside it.
        question: what to ask.
        threads: threads inside the runtime.
        timeout: seconds until the process is stopped.
    """
    with tempfile.TemporaryDirectory(prefix="planish-ask-") as scratch:
        given, returned = Path(scratch, "in"), Path(scratch, "out")
        given.mkdir()
        returned.mkdir()
        told = {"path": str(artifact.path.resolve()), "options": dict(artifact.options), "threads": threads}
        (given / "question.json").write_text(json.dumps({**told, **asdict(question)}))
        broke = execute([*runner.command, str(given), str(returned)], timeout, threads, returned)
        if broke is not None:
            return broke
        try:
            return Answer(**json.loads((returned / "answer.json").read_text("utf-8")))
        except (OSError, ValueError, TypeError) as problem:
            return Broke(f"the runner gave no readable answer: {problem}")


def reply(answer: Callable[[Call, Question], Answer]) -> None:
    """The inside: answer the question in argv's first folder into its second, and exit the process."""
    given, returned = Path(sys.argv[1]), Path(sys.argv[2])
    told: dict[str, Any] = json.loads((given / "question.json").read_text("utf-8"))
    call = Call(Path(told["path"]), told["options"], int(told["threads"]))
    try:
        found = answer(call, Question(tuple(told["texts"]), told["prompt"], tuple(told["tokens"])))
    except PlanishError as problem:
        report = {"what": problem.what, "where": problem.where, "hint": problem.hint}
        (returned / "error.json").write_text(json.dumps(report))
        sys.exit(1)
    (returned / "answer.json").write_text(json.dumps(asdict(found)), "utf-8")
