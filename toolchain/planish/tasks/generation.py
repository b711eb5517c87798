"""Language models that continue a text: one program for a whole prompt, a part of it, or one token."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from planish import hooks
from planish.cache import append_cache, probe
from planish.tasks.base import Alone, Axis, Call, Input
from planish.tasks.text import load_tokenizer, max_length

TOKENS, SLOTS = "input_ids", "position_ids"


@dataclass(frozen=True)
class GenerationTask(Alone):
    """A decoder with a key/value cache that comes in and goes out.

    Inputs: `input_ids` and `position_ids` [B, Q] int64 (the place of each new token in the cache), and for every layer
    `past_key_values.N.key` and `.value` [B, heads, P, width]. Outputs: `logits` [B, Q, V] and `present.N.key` and
    `.value` [B, heads, P + Q, width]. One program serves prompts (P = 0), parts of prompts and single tokens (Q = 1).
    """

    name: str = "text-generation"
    metric: str = "tokens"
    entry: str = "decode"

    def call(self, config: Any, model: nn.Module) -> Call:
        """See the class; what is cached is found by running the model once, on meta."""
        longest = max_length(config, model)
        batch, new = Axis("batch", 1, 64), Axis("sequence", 1, longest)
        past = Axis("past", 0, longest)
        inputs = [Input(name, torch.int64, (batch, new)) for name in (TOKENS, SLOTS)]
        outputs, states = ["logits"], []
        for number, layer in enumerate(probe(model, config)):
            for kind, width in (("key", layer.key_width), ("value", layer.value_width)):
                before, after = f"past_key_values.{number}.{kind}", f"present.{number}.{kind}"
                inputs.append(Input(before, torch.float32, (batch, layer.heads, past, width)))
                outputs.append(after)
                states.append((after, before))
        return Call(_CachedStep(model), tuple(inputs), tuple(outputs), tuple(states))

    def samples(self, folder: Path, config: Any, longest: int) -> Sequence[Mapping[str, Tensor]]:
        """The shipped sentences as running text; random tokens when the folder has no tokenizer."""
        tokenizer = load_tokenizer(folder)
        if tokenizer is None:
            generator = torch.Generator().manual_seed(0)
            ids = torch.randint(int(config.vocab_size), (1, min(longest, 512)), generator=generator)
            return [{TOKENS: ids}]
        sentences = resources.files("planish.tasks").joinpath("sentences.txt").read_text("utf-8").splitlines()
        ids = tokenizer(" ".join(sentences), return_tensors="pt")[TOKENS]
        return [{TOKENS: ids[:, :longest]}]


class _CachedStep(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.takes_positions = SLOTS in inspect.signature(model.forward).parameters

    def forward(self, tokens: Tensor, slots: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        extra = {SLOTS: slots} if self.takes_positions else {}
        with hooks.cache_slots(slots):
            result = self.model(input_ids=tokens, past_key_values=append_cache(states), use_cache=True, **extra)
        layers = result.past_key_values.layers
        return (result.logits, *(t for layer in layers for t in (layer.keys, layer.values)))


TASKS = (GenerationTask(),)
