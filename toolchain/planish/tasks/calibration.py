"""Text to calibrate language models with: docstrings of Python's standard library, and some prose that is shipped.

Three parts of technical text to one of ordinary English measured best on both (docs/decisions/0008).
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SHORTEST = 500  # characters; shorter docstrings are signatures more than prose
FOLDERS = ("", "asyncio", "email")


def calibration_tokens(tokenizer: Any | None, vocabulary: int, count: int, length: int) -> list[Tensor]:
    """Batches of token ids, int64 [1, length], `count` tokens in all; random ones without a tokenizer."""
    if tokenizer is None:
        generator = torch.Generator().manual_seed(1)
        return [torch.randint(vocabulary, (1, length), generator=generator) for _ in range(count // length)]
    wanted = count - count % length
    prose = _ids(tokenizer, _prose())[: wanted // 4]
    texts = list(docstrings())
    step = max(1, len(texts) * 200 // count)  # about 200 tokens each, spread over all modules
    chosen = iter(texts[::step] + texts[1::step] + texts)
    ids = list(prose)
    while len(ids) < wanted:
        ids += _ids(tokenizer, [next(chosen)])
    return [torch.tensor(ids[at : at + length])[None] for at in range(0, wanted, length)]


def _ids(tokenizer: Any, texts: Iterable[str]) -> list[int]:
    return [token for text in texts for token in tokenizer(text)["input_ids"]]


def _prose() -> list[str]:
    folder = resources.files("planish.tasks")
    return ["\n".join(folder.joinpath(name).read_text("utf-8").splitlines()) for name in ("prose.txt", "sentences.txt")]


def docstrings() -> Iterator[str]:
    """Docstrings of the standard library, long ones only, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
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
