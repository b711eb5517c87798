"""Tasks whose input is text: token ids, a padding mask, token types where the model has them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from planish.checkpoint.gguf_reader import quick_gguf
from planish.tasks.base import Alone, Axis, Call, Input, Step
from planish_passes.errors import PlanishError

TRACED = ("input_ids", "attention_mask", "token_type_ids", "bbox")
_CHARACTERS = 128  # ASCII
_LIMITS = ("max_position_embeddings", "max_seq_len", "seq_length")  # the usual word, MPT's and BLOOM's


@dataclass(frozen=True)
class TextTask(Alone):
    """An encoder over one text or a pair of texts."""

    name: str
    outputs: tuple[str, ...]
    metric: str = "argmax"
    entry: str = "encode"

    def call(self, config: Any, model: nn.Module) -> Call:
        """`input_ids`, `attention_mask` and, where the model has more than one type, `token_type_ids`: [B, S] int64."""
        accepted = inspect.signature(model.forward).parameters
        read = getattr(model, "main_input_name", TRACED[0])
        if TRACED[0] not in accepted and read != TRACED[0]:
            raise PlanishError(
                f"{type(model).__name__} reads {read}, and planish knows inputs of text and of pictures only",
                f"task {self.name}",
                "of models of sound, those that write text token by token can be compiled (Whisper)",
            )
        shape = (Axis("batch", 1, 1024), Axis("sequence", 2, max_length(config, model)))
        names = [n for n in TRACED[:2] if n in accepted]
        if "token_type_ids" in accepted and int(getattr(config, "type_vocab_size", 0) or 0) > 1:
            names.append("token_type_ids")
        return Call(Step(model, names, self.outputs), tuple(Input(n, torch.int64, shape) for n in names), self.outputs)

    def samples(self, folder: Path, config: Any, longest: int) -> Sequence[Mapping[str, Tensor]]:
        """The shipped sentences through the model's own tokenizer; random tokens when the folder has none."""
        sentences = resources.files("planish.tasks").joinpath("sentences.txt").read_text("utf-8").splitlines()
        tokenizer = load_tokenizer(folder)
        if tokenizer is None:
            return _random_samples(self.name, config, longest)
        texts: list[tuple[str, ...]] = [(s,) for s in sentences]
        texts += [(a, b) for a, b in zip(sentences[::8], sentences[1::8], strict=False)]
        texts += [(" ".join(sentences),)]  # longer than any model: the maximum length
        made = (tokenizer(*t, truncation=True, max_length=longest, return_tensors="pt") for t in texts)
        return [{k: v for k, v in encoding.items() if k in TRACED} for encoding in made]


def max_length(config: Any, model: nn.Module) -> int:
    """Longest sequence that the model has positions for; 512 when it names no limit."""
    told = (getattr(config, name, None) for name in _LIMITS)
    limit = next((n for n in told if isinstance(n, int) and n > 0), 0)  # XLNet says -1: none
    for path, module in model.named_modules():
        # Positions that are counted from behind the padding index leave the rows before it unused.
        if (
            isinstance(module, nn.Embedding)
            and "position" in path.rsplit(".", 1)[-1]
            and module.padding_idx is not None
        ):
            limit = min(limit or module.num_embeddings, module.num_embeddings - module.padding_idx - 1)
    return max(limit, 2) if limit else 512


def load_tokenizer(folder: Path) -> Any | None:
    """The model's own tokenizer, from a folder or a GGUF file; None when the folder has none."""
    from transformers import AutoTokenizer

    if folder.suffix == ".gguf":
        state = folder.stat()
        return copy.deepcopy(_of_gguf(folder, state.st_mtime_ns, state.st_size))
    known = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
    if not any((folder / name).is_file() for name in known):
        return None
    return AutoTokenizer.from_pretrained(folder)


@lru_cache(maxsize=1)
def _of_gguf(file: Path, changed: int, size: int) -> Any:
    """A compile asks for it often."""
    from transformers import AutoTokenizer

    with quick_gguf():
        return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def _random_samples(task: str, config: Any, longest: int) -> list[dict[str, Tensor]]:
    from optimum.utils import DummyTextInputGenerator, NormalizedTextConfig

    if not getattr(config, "vocab_size", None):
        config = copy.copy(config)
        config.vocab_size = _CHARACTERS  # CANINE hashes characters: every number is one
    samples = []
    for length in (2, 3, 5, 8, 13, 21, 34, 55, 89, 128):
        length = min(length, longest)
        torch.manual_seed(length)
        make = DummyTextInputGenerator(task, NormalizedTextConfig(config), batch_size=1, sequence_length=length)
        sample = {name: make.generate(name) for name in ("input_ids", "token_type_ids")}
        samples.append(_clean(sample, config))
    return samples


def _clean(sample: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    # A padding id inside the text would shift the positions of models that count them.
    pad = getattr(config, "pad_token_id", None)
    if pad is not None and int(config.vocab_size) > 1:
        other = 1 if int(pad) != 1 else 0
        sample["input_ids"] = sample["input_ids"].masked_fill(sample["input_ids"] == int(pad), other)
    return {**sample, "attention_mask": torch.ones_like(sample["input_ids"])}


TASKS = (
    TextTask("text-classification", ("logits",)),
    TextTask("token-classification", ("logits",)),
    TextTask("fill-mask", ("logits",)),
    TextTask("question-answering", ("start_logits", "end_logits")),
)
