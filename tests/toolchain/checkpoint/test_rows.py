"""Row blocks of checkpoints equal the rows of the whole tensor, and take no more memory than a block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from safetensors.torch import save_file
from torch import nn

from planish.checkpoint import GgufFile, SafetensorsCheckpoint, check_finite, load_weights, open_folder
from planish_passes import rows
from planish_passes.errors import PlanishError
from planish_passes.weights import WeightStore

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", FLOATS)
def test_safetensors_of_any_float(tmp_path: Path, dtype: torch.dtype) -> None:
    stored = torch.randn(11, 3, 5).to(dtype)
    save_file({"pad": torch.zeros(1, dtype=torch.uint8), "w": stored}, tmp_path / "a.safetensors")
    checkpoint = SafetensorsCheckpoint([tmp_path / "a.safetensors"])
    for start, stop in ((0, 11), (0, 0), (4, 5), (10, 11)):
        found = checkpoint.rows("w", start, stop, torch.float32)
        assert torch.equal(found, stored[start:stop].float())
        found += 1  # memory of its own
    assert torch.equal(checkpoint.read("w").float(), stored.float())


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q8_0, GGMLQuantizationType.F32])
def test_gguf_blocks(tmp_path: Path, kind: GGMLQuantizationType) -> None:
    values = torch.randn(7, 64).numpy()
    writer = GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_block_count(1)
    writer.add_tensor("blk.0.ffn_up.weight", quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file, name = GgufFile(tmp_path / "a.gguf"), "blk.0.ffn_up.weight"
    whole = file.read(name)
    assert whole.shape == (7, 64)
    for start, stop in ((0, 7), (2, 2), (2, 5)):
        assert torch.equal(file.rows(name, start, stop, torch.float32), whole[start:stop])
        assert torch.equal(file.rows(name, start, stop, torch.float16), whole[start:stop].half())


def small_llama() -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return tf.LlamaConfig(vocab_size=40, tie_word_embeddings=True, **sizes)


def saved(folder: Path, dtype: torch.dtype) -> tuple[nn.Module, WeightStore]:
    model = tf.AutoModelForCausalLM.from_config(small_llama(), dtype=dtype)
    model.save_pretrained(folder)
    with torch.device("meta"):
        meta = tf.AutoModelForCausalLM.from_config(small_llama(), dtype=torch.float32)
    return model, load_weights(meta, open_folder(folder)).store


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_store_hands_out_cast_rows(tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BLOCK", 16 * 3)
    model, store = saved(tmp_path, dtype)
    for name, tensor in model.state_dict().items():
        whole = tensor.float()
        assert torch.equal(store.read(name), whole)
        assert torch.equal(torch.cat(list(store.blocks(name))), whole)
        assert torch.equal(store.rows(name, 1, 4), whole[1:4])
    assert len(store.spans("lm_head.weight")) == 14
    views = [store.read(n) for n in store]  # reading one gives back the pages of another; values stay
    for view, name in zip(views, store, strict=True):
        assert torch.equal(view, model.state_dict()[name].float())


def test_a_bad_value_in_a_later_block_has_the_index_in_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "BLOCK", 16 * 3)
    _, store = saved(tmp_path, torch.bfloat16)
    file = tmp_path / "model.safetensors"
    checkpoint = SafetensorsCheckpoint([file])
    tensors = {k: checkpoint.read(k).clone() for k in checkpoint.keys()}  # noqa: SIM118
    tensors["model.embed_tokens.weight"][38, 5] = torch.inf
    save_file(tensors, file)
    with torch.device("meta"):
        meta = tf.AutoModelForCausalLM.from_config(small_llama(), dtype=torch.float32)
    store = load_weights(meta, open_folder(tmp_path)).store
    with pytest.raises(PlanishError, match=r"embed_tokens.weight holds inf at index \[38, 5\]"):
        check_finite(store)
