"""Tokens of texts by a library that apps use, in a process of its own: `python -P split.py LIBRARY FILE < texts.json`.

Needs nothing of planish. One JSON line per text, as soon as it is known: a library that crashes or hangs has then
named the text. A line is {"ids": [...], "text": decoded} or {"error": "..."}; the first one is {"library": "..."}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

Encode = Callable[[str], Sequence[int]]
Decode = Callable[[Sequence[int]], str]


def _tokenizers(path: Path) -> tuple[Encode, Decode]:
    """Hugging Face's own, as planish's loaders open it: without truncation and padding, no special tokens around."""
    from tokenizers import Tokenizer

    settings = json.loads(path.read_text("utf-8"))
    settings["truncation"] = settings["padding"] = None
    made = Tokenizer.from_str(json.dumps(settings))
    return (
        lambda text: made.encode(text, add_special_tokens=False).ids,
        lambda ids: str(made.decode(list(ids), skip_special_tokens=True)),
    )


def _pytorch_tokenizers(path: Path) -> tuple[Encode, Decode]:
    """What ExecuTorch's runners for language models have inside; it decodes token by token."""
    from pytorch_tokenizers.pytorch_tokenizers_cpp import HFTokenizer

    made: Any = HFTokenizer()
    made.load(str(path))
    return lambda text: made.encode(text, 0, 0), lambda ids: ""


LIBRARIES = {"tokenizers": _tokenizers, "pytorch-tokenizers": _pytorch_tokenizers}


def main() -> None:
    """See the module."""
    name, path = sys.argv[1], Path(sys.argv[2])
    _tell({"library": f"{name} {version(name)}"})
    encode, decode = LIBRARIES[name](path)
    for text in json.load(sys.stdin):
        try:
            ids = [int(i) for i in encode(text)]
            _tell({"ids": ids, "text": decode(ids)})
        except Exception as problem:
            # Both libraries raise bare Exceptions and RuntimeErrors.
            _tell({"error": str(problem) or repr(problem)})


def _tell(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
