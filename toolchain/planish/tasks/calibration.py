"""Text to calibrate language models with: docstrings of Python's standard library, and some prose that is shipped.

Three parts of technical text to one of ordinary English measured best on both (docs/decisions/0008).
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SHORTEST = 500  # characters; shorter docstrings are signatures more than prose
# Tokens of a text, and how many such texts. Encoders are shown many short ones and a few of their longest: what they
# are never shown is what suffers.
TEXTS = {4: 48, 6: 48, 10: 48, 18: 48, 42: 40, 96: 16, 250: 6, 500: 4}
FOLDERS = ("", "asyncio", "email")


def calibration_tokens(tokenizer: Any | None, vocabulary: int, count: int, length: int) -> list[Tensor]:
    """Batches of token ids, int64 [1, length], `count` tokens in all; random ones without a tokenizer."""
    if tokenizer is None:
        generator = torch.Generator().manual_seed(1)
        return [torch.randint(vocabulary, (1, length), generator=generator) for _ in range(count // length)]
    wanted = count - count % length
    prose = _ids(tokenizer, _prose())[: wanted // 4]
    texts = docstrings()
    step = max(1, len(texts) * 200 // count)  # about 200 tokens each, spread over all modules
    chosen = iter(texts[::step] + texts[1::step] + texts)
    ids = list(prose)
    while len(ids) < wanted:
        ids += _ids(tokenizer, [next(chosen)])
    return [torch.tensor(ids[at : at + length])[None] for at in range(0, wanted, length)]


def calibration_texts(tokenizer: Any, longest: int) -> list[dict[str, Tensor]]:
    """Batches of whole texts for encoders, as the tokenizer makes them: one batch per length, nothing padded.

    Half of them are pieces of the shipped prose, half of docstrings; the sentences that compiles are checked with are
    not among them.

    Args:
        longest: tokens that the model takes at most.
    """
    prose = "\n".join(resources.files("planish.tasks").joinpath("prose.txt").read_text("utf-8").splitlines()).split()
    technical = " ".join(docstrings()[::7]).split()
    return [
        _stacked(tokenizer, (prose, technical), length, count) for length, count in TEXTS.items() if length <= longest
    ]


def _stacked(tokenizer: Any, sources: Sequence[list[str]], length: int, count: int) -> dict[str, Tensor]:
    """`count` texts of exactly so many tokens, begun at places spread over the sources."""
    rows: list[Mapping[str, Any]] = []
    for number in range(count):
        words = sources[number % len(sources)]
        start = (number // len(sources)) * max(len(words) - length, 0) // -(-count // len(sources))
        encoded = tokenizer(" ".join(words[start : start + length]), truncation=True, max_length=length)
        if len(encoded["input_ids"]) == length:
            rows.append(encoded)
    return {name: torch.tensor([row[name] for row in rows]) for name in (rows[0] if rows else ())}


def _ids(tokenizer: Any, texts: Iterable[str]) -> list[int]:
    return [token for text in texts for token in tokenizer(text)["input_ids"]]


def _prose() -> list[str]:
    folder = resources.files("planish.tasks")
    return ["\n".join(folder.joinpath(name).read_text("utf-8").splitlines()) for name in ("prose.txt", "sentences.txt")]


@cache
def docstrings() -> tuple[str, ...]:
    """Docstrings of the standard library, long ones only, in a fixed order."""
    return tuple(_docstrings(Path(sysconfig.get_paths()["stdlib"])))


def _docstrings(root: Path) -> Iterator[str]:
    for folder in FOLDERS:
        for path in sorted((root / folder).glob("*.py")):
            try:
                tree = ast.parse(path.read_text("utf-8"))
            except (SyntaxError, UnicodeDecodeError):  # test data among the modules
                continue
            for node in ast.walk(tree):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                    text = ast.get_docstring(node)
                    if text and len(text) >= SHORTEST:
                        yield text
