"""Signed bundles of small random models with real tokenizers, and their loaders in a folder of their own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers as tf
from bundles import key_pair
from decoders import DECODERS
from shipping import MINILM, TEXTS, Shipped, ship, spoil
from support import random_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """A sentence encoder for ONNX Runtime (any length), DirectML and ExecuTorch (48 tokens)."""
    config = tf.BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        vocab_size=30522,
        max_position_embeddings=128,
    )

    def save(folder: Path) -> None:
        random_model(config).save_pretrained(folder)
        for name in (*TOKENIZER, "modules.json"):
            shutil.copyfile(MINILM / name, folder / name)
        shutil.copytree(MINILM / "1_Pooling", folder / "1_Pooling")
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 100}))

    targets = ("onnxruntime", "directml", "executorch")
    return ship(tmp_path_factory, "encoder", save, targets, sequence_length=48)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """A classifier whose labels try to be code."""
    labels = ['") + exit(1) + ("', "*/ \n// ${x} \\u0022 'it'"]
    config = tf.BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        vocab_size=30522,
        max_position_embeddings=64,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )

    def save(folder: Path) -> None:
        random_model(config, tf.AutoModelForSequenceClassification).save_pretrained(folder)
        for name in TOKENIZER:
            shutil.copyfile(MINILM / name, folder / name)

    return ship(tmp_path_factory, "classifier", save, ("onnxruntime",), task="text-classification")


TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|bot|>{% endif %}"
)


@pytest.fixture(scope="session")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """A language model over bytes, whose texts begin with a special token and whose characters take several."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: i for i, word in enumerate(["<s>", "</s>", *bytes_])}
    whole = Tokenizer(models.BPE(words, []))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    whole.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=whole, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE, model_max_length=96
    )
    config = DECODERS["llama"]()
    config.vocab_size, config.max_position_embeddings = len(words), 96
    config.bos_token_id, config.eos_token_id = 0, 1

    def save(folder: Path) -> None:
        random_model(config, tf.AutoModelForCausalLM).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return ship(tmp_path_factory, "writer", save, ("onnxruntime", "executorch"), context=96)


@pytest.fixture(scope="session")
def faults(encoder: Shipped, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Questions of which each must be refused, in the order of `shipping.FAULTS`; and one with a stranger's key."""
    root = tmp_path_factory.mktemp("faults")
    stranger = key_pair(root, "stranger").public.read_text()
    wrong = {"bundle": str(encoder.bundle), "target": "onnxruntime", "key": stranger}
    return [*spoil(encoder, root), wrong]


@pytest.fixture(scope="session")
def tokens(encoder: Shipped) -> dict[str, list[int]]:
    """Text -> its tokens without special ones, by the tokenizer of transformers."""
    found = tf.AutoTokenizer.from_pretrained(encoder.bundle / "tokenizer")
    return {text: list(found(text, add_special_tokens=False)["input_ids"]) for text in TEXTS}
