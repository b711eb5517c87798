"""Answers of the language model of a bundle, piece by piece, and how long they took."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from planish.language import Language
from planish_targets.stream import Decoding, Finished, Sampling

_UNFINISHED = "\ufffd"  # what a decoder makes of the first bytes of a character


@dataclass(frozen=True)
class Answer:
    """A finished answer.

    Args:
        text: without special tokens.
        tokens: all that were written; the one that ended the answer is not among them.
        prompt_tokens: length of the prompt, with what came from the cache.
        finished: counts and seconds.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    finished: Finished

    @property
    def prompt_rate(self) -> float | None:
        """Tokens per second; None when nothing was computed."""
        return _rate(self.finished.prompt_tokens, self.finished.prompt_seconds)

    @property
    def decode_rate(self) -> float | None:
        """Tokens per second after the first one; None when there was no other."""
        return _rate(self.finished.steps, self.finished.decode_seconds)


@dataclass
class Chat:
    """A conversation, or single texts that are completed.

    Args:
        language: tokenizer and chat template.
        decoding: the open process.
        sampling: how tokens are chosen.
        raw: complete texts, without chat template and memory.
        messages: the conversation so far; may begin with a system message.
    """

    language: Language
    decoding: Decoding
    sampling: Sampling
    raw: bool = False
    messages: list[dict[str, str]] = field(default_factory=list)

    def ask(self, prompt: str) -> Iterator[str | Answer]:
        """Pieces of the answer as they come, then the whole `Answer`.

        Raises:
            PlanishError: the template refuses the conversation, or the process failed.
        """
        if self.raw:
            tokens = self.language.text(prompt)
        else:
            self.messages.append({"role": "user", "content": prompt})
            tokens = self.language.conversation(self.messages)
        written: list[int] = []
        stream = TextStream(self.language.tokenizer)
        for event in self.decoding.answer(tokens, self.sampling):
            if isinstance(event, Finished):
                break
            written.append(event)
            yield stream.push(event)
        yield stream.rest()
        text = str(self.language.tokenizer.decode(written, skip_special_tokens=True))
        if not self.raw:
            self.messages.append({"role": "assistant", "content": text})
        assert isinstance(event, Finished)
        yield Answer(text, tuple(written), len(tokens), event)


class TextStream:
    """Text of tokens that come one by one; characters of several tokens are held back until they are whole."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._begin = self._told = 0

    def push(self, token: int) -> str:
        """What this token adds to the text; "" while a character is not whole."""
        self._tokens.append(token)
        added, whole = self._added()
        if not whole:
            return ""
        # Decoded together with the tokens before: whether a word begins with a space depends on them.
        self._begin, self._told = self._told, len(self._tokens)
        return added

    def rest(self) -> str:
        """What was held back."""
        return self._added()[0]

    def _added(self) -> tuple[str, bool]:
        before, after = (self._decode(self._tokens[self._begin : end]) for end in (self._told, len(self._tokens)))
        return after[len(before) :], not after.endswith(_UNFINISHED)

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if count and seconds > 0 else None
