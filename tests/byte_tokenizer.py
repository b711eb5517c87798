"""A tokenizer that any text fits, and that ExecuTorch's own tokenizers open."""

from __future__ import annotations

from pathlib import Path

import transformers as tf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers


def save_tokenizer(folder: Path) -> None:
    """256 bytes, 40 words and five tokens that are none."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"{a}{b}" for a in "abcdefgh" for b in "aeiou"]
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, *words])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[(w[0], w[1]) for w in words]))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["<s>", "<other>", "<end>", "</s>", "<answer>"])
    tf.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
