"""Greedy texts are those of a plain loop, whatever was guessed, and repetitions cost few calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from decoders import decoder, prompt
from support import random_model
from torch import Tensor, nn

from planish.tasks.seq2seq import DecodePart
from planish.verify import greedy as module
from planish.verify.greedy import greedy, repeated

STEPS = 40


def plainly(model: nn.Module, tokens: Tensor, steps: int) -> Tensor:
    told, cache = [], None
    with torch.no_grad():
        for _ in range(steps):
            result = model(input_ids=tokens, past_key_values=cache, use_cache=True)
            tokens, cache = result.logits[:, -1:].argmax(-1), result.past_key_values
            told.append(tokens)
    return torch.cat(told, 1)


class Counted(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, **given: Any) -> Any:
        self.calls += 1
        return self.model(**given)


def writer() -> nn.Module:
    """A decoder that has read something."""
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "vocab_size": 128}
    model = random_model(tf.T5Config(decoder_start_token_id=0, **sizes), tf.AutoModelForSeq2SeqLM)
    read = {"input_ids": torch.arange(3, 12)[None], "attention_mask": torch.ones(1, 9, dtype=torch.int64)}
    return DecodePart("x").original(model, read)


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom", "t5"])  # gemma2: a window that is shorter than the text
def test_it_is_what_a_plain_loop_gives(family: str) -> None:
    model = Counted(writer() if family == "t5" else decoder(family)[1])
    tokens = prompt(batch=1, length=24)
    assert torch.equal(greedy(model, tokens, STEPS), plainly(model.model, tokens, STEPS))
    assert model.calls <= STEPS


@pytest.mark.parametrize("wrong", [0, 1, 5])
def test_wrong_guesses_change_nothing(wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses that are right up to some token, and nonsense from there on."""
    model, tokens = decoder("llama")[1], prompt(batch=1, length=24)
    truth = plainly(model, tokens, STEPS)
    whole = torch.cat([tokens, truth], 1)[0].tolist()

    def guess(text: list[int], longest: int) -> list[int]:
        right = whole[len(text) : len(text) + wrong]
        return [*right, *((t + 1) % 128 for t in whole[len(text) + wrong :])][:longest]

    monkeypatch.setattr(module, "repeated", guess)
    assert torch.equal(greedy(model, tokens, STEPS), truth)


def test_a_text_that_repeats_itself_takes_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = Counted(decoder("llama")[1]), torch.arange(24)[None]
    forward = model.model.forward

    def counts(input_ids: Tensor, **rest: Any) -> Any:
        """Says the next of 0, 1, 2, ... 7, 0, 1 after each token."""
        result = forward(input_ids=input_ids, **rest)
        result.logits = torch.nn.functional.one_hot((input_ids + 1) % 8, 128).float()
        return result

    monkeypatch.setattr(model.model, "forward", counts)
    assert greedy(model, tokens, STEPS)[0].tolist() == [i % 8 for i in range(24, 24 + STEPS)]
    assert model.calls < STEPS / 2


def test_what_is_looked_up() -> None:
    assert repeated([1, 2, 3, 4, 5, 1, 2, 3], 2) == [4, 5]
    assert repeated([1, 2, 3, 4, 9, 2, 3], 9) == [4, 9, 2, 3]  # two tokens, where three are not found
    assert repeated([7, 1, 2, 8, 1, 2, 9, 1, 2], 1) == [9]  # the last time
    assert repeated([1, 2, 3], 4) == []
    assert repeated([5, 5, 5, 5], 0) == []
