"""ExecuTorch's own runner for language models, which Android's LlmModule and iOS' TextRunner wrap, asked for a text."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from planish_passes.errors import PlanishError
from planish_targets.executorch.attached import attached
from planish_targets.executorch.header import read_header
from planish_targets.executorch.pte import INSTALL
from planish_targets.executorch.run import more_kernels, skip_compiler, told
from planish_targets.quiet import quiet
from planish_targets.serve import Call
from planish_targets.text_runner import Answer, Question, reply

FILES = ("tokenizer.json", "tokenizer.model")  # in the order of preference
DEVICE = "ExecuTorch TextLLMRunner"


def answer(call: Call, question: Question) -> Answer:
    """Split the texts and continue the prompt.

    Raises:
        PlanishError: the runner refuses the artifact.
    """
    read_header(call.path)
    opened = _tokenizer(call.path.parent)
    if isinstance(opened, str):
        return Answer(DEVICE, refused=opened)
    file, tokenizer = opened
    runner, config = _runner(call, file, len(question.tokens))
    pieces: list[str] = []
    seen: list[int] = []
    try:
        # A token that is a part of a character only is no Python text: what came before it is still an answer.
        with contextlib.suppress(UnicodeDecodeError):
            runner.generate(
                question.prompt, config, pieces.append, lambda stats: seen.append(int(stats.num_prompt_tokens))
            )
    except RuntimeError as problem:
        raise PlanishError(
            told(problem), str(call.path), "`planish verify` tells whether the file itself runs"
        ) from problem
    return Answer(
        DEVICE,
        file.name,
        [_split(tokenizer, text, 0) for text in question.texts],
        [_split(tokenizer, text, 1) for text in question.texts],
        seen[0] if seen else len(_split(tokenizer, question.prompt, 0)),
        pieces,
        _spelled(tokenizer, question.tokens),
    )


def _tokenizer(folder: Path) -> tuple[Path, Any] | str:
    """The file that executorch's tokenizers open, and the tokenizer; or why they open none."""
    try:
        from pytorch_tokenizers.pytorch_tokenizers_cpp import HFTokenizer, SPTokenizer
    except ImportError as missing:
        raise PlanishError(f"executorch's tokenizers are not installed ({missing})", str(folder), INSTALL) from missing
    refused = []
    for name, kind in zip(FILES, (HFTokenizer, SPTokenizer), strict=True):
        if (folder / name).is_file():
            made = kind()
            reason = _reason(made.load, folder / name)
            if reason is None:
                return folder / name, made
            refused.append(f"{name}: {reason}")
    return "; ".join(refused) or "there is no tokenizer.json or tokenizer.model"


def _reason(load: Callable[[str], None], path: Path) -> str | None:
    """Why a file does not load, which only the error output tells; None when it does."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            load(str(path))
        except RuntimeError as problem:
            log.seek(0)
            lines = log.read().decode(errors="replace").splitlines()
            # "E tokenizers:file.cpp:467] what": I and W stand before what is no reason.
            said = [line.partition("] ")[2] for line in lines if "tokenizers:" in line]
            return said[-1] if said else str(problem)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    return None


def _runner(call: Call, tokenizer: Path, tokens: int) -> tuple[Any, Any]:
    skip_compiler()
    with quiet():
        from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner
        from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

        _unsafe_reset_threadpool(call.threads)
        if call.options.get("kernels"):
            more_kernels(call)
        try:
            data = attached(call)
            runner = TextLLMRunner(str(call.path), str(tokenizer), None if data is None else str(data))
        except RuntimeError as problem:
            raise PlanishError(told(problem), str(call.path), "its log names what it misses") from problem
    return runner, GenerationConfig(echo=False, temperature=0.0, max_new_tokens=tokens, num_bos=0, num_eos=0)


def _split(tokenizer: Any, text: str, begin: int) -> list[int]:
    try:
        return list(tokenizer.encode(text, begin, 0))
    except RuntimeError:  # a character that it has no token for
        return []


def _spelled(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    found: list[str] = []
    with contextlib.suppress(UnicodeDecodeError):
        for token in tokens:
            found.append(tokenizer.decode(token))
    return found


def fit(folder: Path) -> tuple[str, ...]:
    """Take the normaliser NFC out of tokenizer.json: these tokenizers decompose and never compose ("é" becomes "e"),
    while nearly all text is composed from the start. See `planish_targets.text_runner.HasTextRunner`."""
    path = folder / FILES[0]
    if not path.is_file():
        return ()
    told = json.loads(path.read_text("utf-8"))
    kept = _without_nfc(told.get("normalizer"))
    if kept == told.get("normalizer"):
        return ()
    path.write_text(json.dumps({**told, "normalizer": kept}, ensure_ascii=False), "utf-8")
    return (
        "executorch/tokenizer.json has no NFC: executorch's tokenizers lose accents with it; compose texts yourself",
    )


def _without_nfc(normalizer: Any) -> Any:
    if not isinstance(normalizer, dict) or normalizer.get("type") == "NFC":
        return None
    if normalizer.get("type") != "Sequence":
        return normalizer
    steps = [n for n in map(_without_nfc, normalizer.get("normalizers", [])) if n is not None]
    return {**normalizer, "normalizers": steps} if steps else None


if __name__ == "__main__":
    reply(answer)
