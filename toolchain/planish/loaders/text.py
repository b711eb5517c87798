"""The tokenizer of a bundle as an app reads it: tokenizer.json, and the tokens that go around a text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish.bundle.read import Bundle

FILE = "tokenizer.json"
_PROBE, _OTHER = "xQzProbe", "two Probes"
_TIME = ("strftime_now", "datetime")  # templates that ask for the time answer differently every day


@dataclass(frozen=True)
class Text:
    """How a text becomes tokens: `prefix`, what tokenizer.json makes of it without special tokens, `suffix`.

    Args:
        tokenizer: path of tokenizer.json inside the bundle.
        pad: token that fills fixed shapes.
        longest: most tokens that the model was made for; None when nothing says so.
        ends: tokens that end a text, as the tokenizer says.
        chat: what the chat template puts before and after one message of a user; None when it has none, or one that
            depends on more than the message.
    """

    tokenizer: str
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    pad: int
    longest: int | None
    ends: tuple[int, ...]
    chat: tuple[str, str] | None


def tokenizer_folder(bundle: Bundle) -> str | None:
    """Folder inside the bundle that has a tokenizer.json; the model's own, else that of an artifact."""
    manifest = bundle.manifest
    made = [t.artifact.folder for t in manifest.targets.values() if t.artifact is not None]
    places = [manifest.tokenizer, *made]
    return next((p for p in places if p is not None and f"{p}/{FILE}" in manifest.files), None)


def read_text(bundle: Bundle) -> Text | str:
    """The facts, or why there are none."""
    folder = tokenizer_folder(bundle)
    if folder is None:
        return f"the bundle has no {FILE}: texts need a tokenizer that the app brings along"
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(bundle.root / folder, local_files_only=True)
        prefix, suffix = _around(tokenizer)
    except Exception as problem:
        # tokenizers raises bare Exceptions, transformers what the files provoke.
        return f"the tokenizer cannot be opened ({str(problem).splitlines()[0][:120] if str(problem) else problem!r})"
    limits = [_sentence_limit(bundle.root / folder)]
    if tokenizer.model_max_length < 1 << 30:  # "no limit" is a number with thirty digits
        limits.append(int(tokenizer.model_max_length))
    known = [limit for limit in limits if limit]
    pad = tokenizer.pad_token_id
    end = tokenizer.eos_token_id
    return Text(
        tokenizer=f"{folder}/{FILE}",
        prefix=prefix,
        suffix=suffix,
        pad=int(pad) if isinstance(pad, int) else 0,
        longest=min(known) if known else None,
        ends=(int(end),) if isinstance(end, int) else (),
        chat=_chat(tokenizer),
    )


def _around(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Special tokens before and behind a text.

    Raises:
        ValueError: they depend on the text.
    """
    found = set()
    for text in (_PROBE, _OTHER):
        bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        full = list(tokenizer(text)["input_ids"])
        starts = [i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare]
        if not starts:
            raise ValueError("special tokens are not around the text")
        found.add((tuple(full[: starts[0]]), tuple(full[starts[0] + len(bare) :])))
    if len(found) != 1:
        raise ValueError("special tokens depend on the text")
    return found.pop()


def _sentence_limit(folder: Path) -> int | None:
    """What sentence-transformers cuts texts to."""
    for path in sorted(folder.glob("sentence_*_config.json")):
        limit = json.loads(path.read_text("utf-8")).get("max_seq_length")
        if isinstance(limit, int) and limit > 0:
            return limit
    return None


def _chat(tokenizer: Any) -> tuple[str, str] | None:
    """What stands around a message: found by two messages, so that a template which does more is noticed."""
    template = getattr(tokenizer, "chat_template", None)
    if not isinstance(template, str) or any(word in template for word in _TIME):
        return None
    try:
        first, second = (
            tokenizer.apply_chat_template(
                [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
            )
            for message in (_PROBE, _OTHER)
        )
    except Exception:
        # Templates are programs (Jinja): they raise what they want, and such a one is no use to an app.
        return None
    before, found, after = first.partition(_PROBE)
    return (before, after) if found and second == before + _OTHER + after else None
