"""What to say about weights that only one side has: the model or the checkpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from planish_passes.errors import PlanishError


def few(names: Sequence[str], limit: int = 4) -> str:
    """The first names and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def needed_but_missing(model: nn.Module, names: Sequence[str], where: str, hint: str) -> PlanishError:
    """The refusal of a checkpoint without weights that the model needs."""
    count = "1 weight" if len(names) == 1 else f"{len(names)} weights"
    return PlanishError(f"The checkpoint lacks {count} of {type(model).__name__}: {few(names)}.", where, hint)


def is_ignored(model: nn.Module, name: str) -> bool:
    """True when the model's class declares that checkpoints may lack this weight."""
    patterns = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    return any(re.search(pattern, name) for pattern in patterns)


def notes_on(
    model: nn.Module, unexpected: Sequence[str], absent: Sequence[str], shadowed: Sequence[str]
) -> tuple[str, ...]:
    """Sentences about weights left out on either side; what the model's class declares harmless is not mentioned."""
    kind, notes = type(model).__name__, []
    if surprising := _surprising(model, unexpected):
        notes.append(f"{len(surprising)} weights of the checkpoint are not used by {kind}: {few(surprising)}")
    if shadowed:
        notes.append(f"{len(shadowed)} weights of the checkpoint are there twice; not used: {few(shadowed)}")
    if absent:
        notes.append(f"{len(absent)} weights of {kind} are not in the checkpoint and not needed: {few(absent)}")
    return tuple(notes)


def _surprising(model: Any, unexpected: Sequence[str]) -> list[str]:
    from transformers.utils.loading_report import LoadStateDictInfo

    info = LoadStateDictInfo(
        missing_keys=set(),
        unexpected_keys=set(unexpected),
        mismatched_keys=set(),
        error_msgs=[],
        conversion_errors={},
        skipped_pp_keys=set(),
    )
    model._adjust_missing_and_unexpected_keys(info)
    return [name for name in dict.fromkeys(unexpected) if name in info.unexpected_keys]
