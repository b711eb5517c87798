"""What a program is shown before its weights are rounded: text, as its task reads it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from planish.source import Source
from planish.tasks import Task
from planish.tasks.calibration import calibration_texts, calibration_tokens
from planish.tasks.text import load_tokenizer
from planish.verify.logits import empty_cache, feed
from planish_passes.program import Program

TOKENS, LENGTH = 1536, 512  # of calibration
LOOKED_AT, ROWS = 128, 4  # a little of it: tokens for language models, texts of each length for encoders
_TEXT = frozenset({"input_ids", "attention_mask", "token_type_ids"})


def readable(program: Program, task: Task, source: Source) -> bool:
    """Whether there is anything to show: no pictures, no sound, and nothing that another program makes."""
    if task.dependent:
        return False
    if task.metric == "tokens":
        return True
    names = {p.name for p in program.inputs}
    return "input_ids" in names <= _TEXT and load_tokenizer(source.tokenizer_files) is not None


def shown(program: Program, task: Task, source: Source, *, few: bool = False) -> list[Mapping[str, Tensor]]:
    """Inputs of the program, batch by batch.

    Args:
        program: `readable`.
        few: as much as can be looked at once per weight.
    """
    longest = program.axes["sequence"][1]
    tokenizer = load_tokenizer(source.tokenizer_files)
    if task.metric == "tokens":
        count, length = (LOOKED_AT, LOOKED_AT) if few else (TOKENS, LENGTH)
        tokens = calibration_tokens(tokenizer, int(source.config.vocab_size), count, min(length, longest))
        return [feed(program, t, empty_cache(program)) for t in tokens]
    texts = [t for t in calibration_texts(tokenizer, longest) if t]
    return [{p.name: _rows(t, p.name, few) for p in program.inputs} for t in texts]


def _rows(text: Mapping[str, Tensor], name: str, few: bool) -> Tensor:
    tensor = text[name] if name in text else torch.zeros_like(text["input_ids"])
    return tensor[:ROWS] if few else tensor
