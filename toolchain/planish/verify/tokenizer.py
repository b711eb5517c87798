"""Do apps read what the model does? The shipped tokenizer.json by the libraries of apps, and transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish.bundle import Bundle
from planish.loaders.text import FILE, Text, read_text, tokenizer_folder
from planish.verdict import Failed, Metric, NotRun, Passed, Verdict
from planish.verify.hard_texts import hard_texts
from planish_targets.contract import Evidence

CHECK = "tokenizer"
WRITES = "text-generation"
_SCRIPT = Path(__file__).with_name("split.py")
_SHOWN = 40  # characters of a text in a reason


@dataclass(frozen=True)
class Truth:
    """What transformers makes of the corpus: tokens of each text without and with special ones, and text again."""

    texts: tuple[str, ...]
    bare: tuple[tuple[int, ...], ...]
    full: tuple[tuple[int, ...], ...]
    decoded: tuple[str, ...]


def check_tokenizer(bundle: Bundle, timeout: float) -> dict[str, Verdict]:
    """ "bundle" or target -> verdict. For the bundle: as planish's loaders read tokenizer.json, and any library that is
    Hugging Face's own inside. For ExecuTorch's language models, its own tokenizers, which its runners have inside.

    Args:
        bundle: opened, its hashes checked.
        timeout: seconds until a library is stopped.
    """
    takes_text = any(p.name == "input_ids" for t in bundle.manifest.targets.values() for p in t.inputs)
    folder = tokenizer_folder(bundle)
    if folder is None:
        if not takes_text:
            return {"bundle": NotRun(CHECK, "the model reads no text")}
        return {"bundle": Failed(CHECK, Evidence.EXECUTED, f"the bundle ships no {FILE} that an app could open")}
    facts = read_text(bundle)
    if isinstance(facts, str):
        return {"bundle": Failed(CHECK, Evidence.EXECUTED, facts)}
    truth = _truth(bundle.root / folder)
    decodes = bundle.manifest.task == WRITES
    found: dict[str, Verdict] = {
        "bundle": _judge("tokenizers", bundle.root / facts.tokenizer, truth, facts, decodes, timeout)
    }
    for name, entry in bundle.manifest.targets.items():
        made = entry.artifact
        if (
            decodes
            and made is not None
            and made.entry.endswith(".pte")
            and f"{made.folder}/{FILE}" in bundle.manifest.files
        ):
            path = bundle.root / made.folder / FILE
            found[name] = _judge("pytorch-tokenizers", path, truth, None, False, timeout)
    return found


def _truth(folder: Path) -> Truth:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    texts = tuple(hard_texts(dict.fromkeys(tokenizer.all_special_tokens)))
    bare = tuple(tuple(tokenizer(t, add_special_tokens=False, verbose=False)["input_ids"]) for t in texts)
    full = tuple(tuple(tokenizer(t, verbose=False)["input_ids"]) for t in texts)
    return Truth(texts, bare, full, tuple(str(tokenizer.decode(list(ids), skip_special_tokens=True)) for ids in bare))


def _judge(library: str, path: Path, truth: Truth, facts: Text | None, decodes: bool, timeout: float) -> Verdict:
    lines, why = _ask(library, path, truth.texts, timeout)
    if not lines:
        return NotRun(CHECK, why)
    device, answers = str(lines[0]["library"]), lines[1:]
    wrong = []
    for text, bare, full, decoded, told in zip(
        truth.texts, truth.bare, truth.full, truth.decoded, answers, strict=False
    ):
        if reason := _difference(bare, full, decoded if decodes else None, told, facts):
            wrong.append(f"{_shown(text)}: {reason}")
    wrong += [f"{_shown(text)}: {why}" for text in truth.texts[len(answers) : len(answers) + 1]]
    unheard = len(truth.texts) - len(answers)
    metrics = (
        Metric("texts", len(truth.texts)),
        Metric("characters", sum(map(len, truth.texts))),
        Metric("mismatches", len(wrong) + max(0, unheard - 1), 0),
    )
    if all(m.ok for m in metrics):
        return Passed(CHECK, Evidence.EXECUTED, metrics, device)
    return Failed(CHECK, Evidence.EXECUTED, f"{device} differs from transformers at {wrong[0]}", metrics, device)


def _difference(
    bare: Sequence[int], full: Sequence[int], decoded: str | None, told: dict[str, Any], facts: Text | None
) -> str:
    if "error" in told:
        return str(told["error"])[:120]
    ids = list(told["ids"])
    if ids != list(bare):
        at = next((i for i, (a, b) in enumerate(zip(ids, bare, strict=False)) if a != b), min(len(ids), len(bare)))
        return f"token {at} is {_at(ids, at)} and not {_at(bare, at)}"
    if facts is not None and [*facts.prefix, *ids, *facts.suffix] != list(full):
        return "other special tokens stand around it"
    if decoded is not None and told["text"] != decoded:
        return "its tokens make another text"
    return ""


def _at(ids: Sequence[int], at: int) -> str:
    return str(ids[at]) if at < len(ids) else "missing"


def _shown(text: str) -> str:
    kind = ascii(text[:_SHOWN])
    return f"{kind}... ({len(text)} characters)" if len(text) > _SHOWN else kind


def _ask(library: str, path: Path, texts: Sequence[str], timeout: float) -> tuple[list[dict[str, Any]], str]:
    """What the library said, line by line, and why no more came."""
    command = [sys.executable, "-P", str(_SCRIPT), library, str(path)]
    try:
        done = subprocess.run(
            command, input=json.dumps(texts).encode(), capture_output=True, timeout=timeout, check=False
        )
        output, errors, why = done.stdout, done.stderr, f"exit code {done.returncode}"
    except subprocess.TimeoutExpired as stopped:
        output, errors, why = stopped.stdout or b"", b"", f"no answer within {timeout:g} s"
    except OSError as problem:
        return [], f"Python cannot be started: {problem.strerror}"
    # The last line may be half a one.
    lines = [json.loads(line) for line in output.splitlines(keepends=True) if line.endswith(b"\n") and line[:1] == b"{"]
    last = errors.decode(errors="replace").strip().splitlines()
    return lines, f"{why}: {last[-1][:200]}" if last else why
