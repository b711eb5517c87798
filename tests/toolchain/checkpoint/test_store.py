"""Every weight of a store equals, bit for bit, what transformers itself loads from the same folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from planish.checkpoint import AbsentWeightError, Loaded, load_weights, open_folder
from planish_passes.errors import PlanishError

tf: Any = transformers  # its lazy exports carry more types than a test wants
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 40,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
LLM = {**SMALL, "num_key_value_heads": 1}
VIT = {**{k: SMALL[k] for k in list(SMALL)[:4]}, "image_size": 16, "patch_size": 8}
CONVNEXT = {"depths": [1, 1], "hidden_sizes": [8, 16], "num_stages": 2}


def meta(auto: Any, config: Any) -> nn.Module:
    with torch.device("meta"):
        return auto.from_config(config, dtype=torch.float32)  # type: ignore[no-any-return]


def save(model: Any, folder: Path, **how: Any) -> Path:
    # Fresh norms and biases are all ones and zeros: swapping two of them would go unnoticed.
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.normal_()
    model.save_pretrained(folder, **how)
    return folder


def load(auto: Any, folder: Path, **how: Any) -> Loaded:
    return load_weights(meta(auto, tf.AutoConfig.from_pretrained(folder)), open_folder(folder), **how)


def assert_equal_to_transformers(auto: Any, folder: Path) -> Loaded:
    expected = auto.from_pretrained(folder, dtype=torch.float32).state_dict()
    loaded = load(auto, folder)
    assert list(loaded.store) == list(expected)
    for name, tensor in expected.items():
        found = loaded.store.read(name)
        assert found.dtype == tensor.dtype, name
        assert torch.equal(found, tensor), name
    loaded.check_finite()
    return loaded


BASE, CLASSIFY, MASKED = tf.AutoModel, tf.AutoModelForSequenceClassification, tf.AutoModelForMaskedLM
CAUSAL, IMAGE = tf.AutoModelForCausalLM, tf.AutoModelForImageClassification
CASES: dict[str, tuple[Any, Callable[[], Any]]] = {
    "bert": (BASE, lambda: tf.BertConfig(**SMALL)),
    "roberta": (BASE, lambda: tf.RobertaConfig(**SMALL)),
    "albert": (BASE, lambda: tf.AlbertConfig(**SMALL, embedding_size=8)),
    "distilbert": (
        BASE,
        lambda: tf.DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=24, vocab_size=40, pad_token_id=0),
    ),
    "electra": (BASE, lambda: tf.ElectraConfig(**SMALL, embedding_size=8)),
    "mpnet": (BASE, lambda: tf.MPNetConfig(**SMALL)),
    "deberta-v2": (
        BASE,
        lambda: tf.DebertaV2Config(**SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8),
    ),
    "modernbert": (BASE, lambda: tf.ModernBertConfig(**SMALL)),
    "vit": (BASE, lambda: tf.ViTConfig(**VIT)),
    "vit-classify": (IMAGE, lambda: tf.ViTConfig(**VIT)),
    "convnext-classify": (IMAGE, lambda: tf.ConvNextConfig(**CONVNEXT)),
    "mobilenet-v2-classify": (IMAGE, lambda: tf.MobileNetV2Config(image_size=32, depth_multiplier=0.35)),
    "bert-classify": (CLASSIFY, lambda: tf.BertConfig(**SMALL, num_labels=3)),
    "deberta-v2-classify": (CLASSIFY, lambda: tf.DebertaV2Config(**SMALL)),
    "bert-tokens": (tf.AutoModelForTokenClassification, lambda: tf.BertConfig(**SMALL, num_labels=5)),
    "roberta-answers": (tf.AutoModelForQuestionAnswering, lambda: tf.RobertaConfig(**SMALL)),
    "bert-masked": (MASKED, lambda: tf.BertConfig(**SMALL)),
    "roberta-masked": (MASKED, lambda: tf.RobertaConfig(**SMALL)),
    "albert-masked": (MASKED, lambda: tf.AlbertConfig(**SMALL, embedding_size=8)),
    "distilbert-masked": (
        MASKED,
        lambda: tf.DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=24, vocab_size=40),
    ),
    "electra-masked": (MASKED, lambda: tf.ElectraConfig(**SMALL, embedding_size=8)),
    "modernbert-masked": (MASKED, lambda: tf.ModernBertConfig(**SMALL)),
    "deberta-v2-masked": (MASKED, lambda: tf.DebertaV2Config(**SMALL)),
    "qwen2-tied": (CAUSAL, lambda: tf.Qwen2Config(**LLM, tie_word_embeddings=True)),
    "qwen2-untied": (CAUSAL, lambda: tf.Qwen2Config(**LLM, tie_word_embeddings=False)),
    "mixtral": (CAUSAL, lambda: tf.MixtralConfig(**LLM, num_local_experts=12)),
    "gpt2": (CAUSAL, lambda: tf.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=40, n_positions=16)),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_from_pretrained(name: str, tmp_path: Path) -> None:
    auto, config = CASES[name]
    loaded = assert_equal_to_transformers(auto, save(auto.from_config(config()), tmp_path))
    assert not loaded.absent
    assert not loaded.notes


def test_bfloat16_checkpoint_reads_as_float32(tmp_path: Path) -> None:
    save(BASE.from_config(tf.BertConfig(**SMALL)).to(torch.bfloat16), tmp_path)
    assert_equal_to_transformers(BASE, tmp_path)


def test_shards(tmp_path: Path) -> None:
    save(BASE.from_config(tf.BertConfig(**SMALL)), tmp_path, max_shard_size="5KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert len(assert_equal_to_transformers(BASE, tmp_path).checkpoint.paths) > 2


def test_float32_is_a_view_of_the_file(tmp_path: Path) -> None:
    store = load(BASE, save(BASE.from_config(tf.BertConfig(**SMALL)), tmp_path)).store
    name = "encoder.layer.0.output.dense.weight"
    assert store.read(name).data_ptr() == store.read(name).data_ptr()


def test_tied_names_share_one_source(tmp_path: Path) -> None:
    loaded = load(MASKED, save(MASKED.from_config(tf.BertConfig(**SMALL)), tmp_path))
    embedding = "bert.embeddings.word_embeddings.weight"
    assert loaded.aliases == {
        "cls.predictions.decoder.weight": embedding,
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
    assert loaded.store.sources("cls.predictions.decoder.weight") == loaded.store.sources(embedding) == (embedding,)


def test_only_the_tied_target_is_stored(tmp_path: Path) -> None:
    save(CAUSAL.from_config(CASES["qwen2-tied"][1]()), tmp_path)
    rewrite(tmp_path, lambda t: {"lm_head.weight" if "embed_tokens" in k else k: v for k, v in t.items()})
    loaded = assert_equal_to_transformers(CAUSAL, tmp_path)
    assert loaded.store.sources("model.embed_tokens.weight") == ("lm_head.weight",)


def test_both_tied_names_stored(tmp_path: Path) -> None:
    save(CAUSAL.from_config(CASES["qwen2-tied"][1]()), tmp_path)
    rewrite(tmp_path, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"].clone()})
    assert set(assert_equal_to_transformers(CAUSAL, tmp_path).aliases) == {"lm_head.weight"}
    rewrite(tmp_path, lambda t: {**t, "lm_head.weight": t["lm_head.weight"] + 1})
    with pytest.raises(PlanishError, match=r"ties lm_head.weight to model.embed_tokens.weight"):
        load(CAUSAL, tmp_path)


def test_old_norm_names(tmp_path: Path) -> None:
    save(BASE.from_config(tf.BertConfig(**SMALL)), tmp_path)

    def age(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    rewrite(tmp_path, lambda t: {age(k): v for k, v in t.items()})
    assert any("gamma" in k for k in load_file(tmp_path / "model.safetensors"))
    assert_equal_to_transformers(BASE, tmp_path)


def test_base_model_from_a_head_checkpoint(tmp_path: Path) -> None:
    save(CLASSIFY.from_config(tf.BertConfig(**SMALL)), tmp_path)
    loaded = assert_equal_to_transformers(BASE, tmp_path)
    assert loaded.notes == (
        "2 weights of the checkpoint are not used by BertModel: classifier.bias, classifier.weight",
    )


def test_head_model_from_a_base_checkpoint_is_refused(tmp_path: Path) -> None:
    save(BASE.from_config(tf.BertConfig(**SMALL)), tmp_path)
    with pytest.raises(PlanishError, match=r"lacks 2 weights of BertForSequenceClassification: classifier\.weight"):
        load(CLASSIFY, tmp_path, hint="choose")


def test_pooler_may_be_absent_but_not_read(tmp_path: Path) -> None:
    save(MASKED.from_config(tf.BertConfig(**SMALL)), tmp_path)
    with pytest.raises(PlanishError, match=r"pooler.dense.weight"):
        load(BASE, tmp_path)
    loaded = load(BASE, tmp_path, unneeded=lambda name: "pooler" in name)
    assert loaded.absent == ("pooler.dense.weight", "pooler.dense.bias")
    assert "not in the checkpoint and not needed: pooler.dense.weight" in loaded.notes[-1]
    loaded.check_finite()
    with pytest.raises(AbsentWeightError, match=r"pooler.dense.weight"):
        loaded.store.read("pooler.dense.weight")


def test_batch_norm_counter_may_be_absent(tmp_path: Path) -> None:
    auto, config = CASES["mobilenet-v2-classify"]
    save(auto.from_config(config()), tmp_path)
    rewrite(tmp_path, lambda t: {k: v for k, v in t.items() if not k.endswith("num_batches_tracked")})
    assert_equal_to_transformers(auto, tmp_path)


def test_wrong_shape_is_refused_by_name(tmp_path: Path) -> None:
    save(BASE.from_config(tf.BertConfig(**SMALL)), tmp_path)
    tf.BertConfig(**{**SMALL, "vocab_size": 41}).save_pretrained(tmp_path)
    with pytest.raises(
        PlanishError, match=r"word_embeddings\.weight has the shape \[40, 16\]; .* \[41, 16\]"
    ) as caught:
        load(BASE, tmp_path)
    assert "model.safetensors" in caught.value.where


def test_missing_expert_is_refused(tmp_path: Path) -> None:
    save(CAUSAL.from_config(CASES["mixtral"][1]()), tmp_path)
    lost = "model.layers.1.block_sparse_moe.experts.7.w2.weight"
    rewrite(tmp_path, lambda t: {k: v for k, v in t.items() if k != lost})
    with pytest.raises(PlanishError, match=r"experts\.down_proj has the shape \[11, .* \[12, "):
        load(CAUSAL, tmp_path)


def test_expert_of_another_shape_is_refused(tmp_path: Path) -> None:
    save(CAUSAL.from_config(CASES["mixtral"][1]()), tmp_path)
    odd = "model.layers.1.block_sparse_moe.experts.7.w2.weight"
    rewrite(tmp_path, lambda t: {**t, odd: t[odd][:-1].contiguous()})
    with pytest.raises(PlanishError, match=r"MergeModulelist cannot make .*layers.1.*down_proj"):
        load(CAUSAL, tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_is_refused_by_name_and_index(value: float, tmp_path: Path) -> None:
    save(BASE.from_config(tf.BertConfig(**SMALL)), tmp_path)
    name = "encoder.layer.1.output.dense.weight"

    def spoil(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors[name][3, 5] = value
        return tensors

    rewrite(tmp_path, spoil)
    with pytest.raises(PlanishError, match=rf"{name} holds {value} at index \[3, 5\]"):
        load(BASE, tmp_path).check_finite()


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = folder / "model.safetensors"
    tensors = {k: v.clone() for k, v in load_file(file).items()}
    save_file(change(tensors), file, metadata={"format": "pt"})
