"""The original model's greedy continuation of a text, in few calls."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

LONGEST = 16  # tokens of a guess: a call with as many takes twice as long as one with a single token, not 16 times
_CONTEXT = (3, 2)  # how many last tokens are looked for in the text so far


def greedy(model: nn.Module, prompt: Tensor, steps: int) -> Tensor:
    """The most probable continuation, int64 [1, steps], by the original model with its own cache.

    Texts repeat themselves, greedy ones above all. What followed the same tokens before is fed as a guess, and stands
    as far as it is what the model says itself (prompt lookup decoding; A. Saxena 2023, after arXiv:2211.17192).
    """
    text, cache, fed, reach = prompt[0].tolist(), None, 0, LONGEST
    end = len(text) + steps
    with torch.no_grad():
        while len(text) < end:
            guess = repeated(text, min(reach, end - len(text) - 1)) if fed else []
            before: Any = copy.deepcopy(cache) if guess else None
            tokens = torch.tensor([[*text[fed:], *guess]])
            result = model(input_ids=tokens, past_key_values=cache, use_cache=True)
            said = result.logits[0, -len(guess) - 1 :].argmax(-1).tolist()
            right = next((i for i, (a, b) in enumerate(zip(guess, said, strict=False)) if a != b), len(guess))
            if right == len(guess):
                cache, fed, reach = result.past_key_values, len(text) + right, min(LONGEST, 2 * max(reach, 1))
            else:  # the cache holds what was wrong: the one before it sees the right tokens with the next call
                cache, reach = before, right + 1
            text += said[: right + 1]
    return torch.tensor([text[-steps:]])


def repeated(text: Sequence[int], longest: int) -> list[int]:
    """What followed the last tokens where they stood before, at most `longest` tokens."""
    for width in _CONTEXT:
        last = list(text[-width:])
        for at in range(len(text) - width - 1, -1, -1):
            if list(text[at : at + width]) == last:
                return list(text[at + width : at + width + longest])
    return []
