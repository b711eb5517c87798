"""Weights of models in the blocks of a GGUF file: permuted, split, joined; and reasons where there are none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from gguf_models import stored_values, write_llama
from torch import Tensor, nn
from transformers.core_model_loading import Chunk, Concatenate, Transpose, WeightConverter

from planish.checkpoint import Blocks, GgufFile, Loaded, load_weights, name_tensors
from planish.checkpoint.blocks import unpack

tf: Any = transformers


def llama(path: Path) -> Loaded:
    with torch.device("meta"):
        model = tf.AutoModelForCausalLM.from_config(tf.AutoConfig.from_pretrained(path.parent, gguf_file=path.name))
    checkpoint, rules = name_tensors(GgufFile(path), model.to(torch.float32))
    return load_weights(model, checkpoint, rules=rules)


def written_out(found: Blocks, start: int = 0, stop: int | None = None) -> Tensor:
    values, scales, minima = unpack(found.rows(start, found.spec.shape[0] if stop is None else stop), found.kind)
    groups = values.view(len(values), -1, 32) * scales[..., None]
    return (groups if minima is None else groups + minima[..., None]).flatten(1)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_every_matrix_of_a_llama(kind: str, tmp_path: Path) -> None:
    path = write_llama(tmp_path / "tiny.gguf", kind)
    loaded = llama(path)
    for name, values in stored_values(path).items():
        found = loaded.stored(name)
        assert isinstance(found, Blocks), found
        assert torch.equal(written_out(found), values), name
        assert torch.equal(written_out(found, 5, 9), values[5:9]), name
        assert torch.equal(loaded.store.read(name), values), name  # by the other way, through transformers
    assert isinstance(loaded.stored("lm_head.weight"), Blocks)  # tied


def test_other_types_have_a_reason(tmp_path: Path) -> None:
    kinds = {"token_embd.weight": "F16", "blk.0.ffn_down.weight": "Q6_K", "blk.0.attn_q.weight": "F32"}
    loaded = llama(write_llama(tmp_path / "tiny.gguf", lambda name: kinds.get(name, "Q8_0")))
    reasons = {n: loaded.stored(n) for n in loaded.store if isinstance(loaded.stored(n), str) and "norm" not in n}
    assert set(reasons) == {
        *("model.embed_tokens.weight", "lm_head.weight"),
        *("model.layers.0.mlp.down_proj.weight", "model.layers.0.self_attn.q_proj.weight"),
    }
    assert str(reasons["model.layers.0.mlp.down_proj.weight"]).startswith("the file stores it as Q6_K;")
    assert str(loaded.stored("made.up")) == "it is not in the file"


class Matrices(tf.PreTrainedModel):  # type: ignore[misc]
    """A model with weights of given names."""

    config_class = tf.PreTrainedConfig

    def __init__(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        super().__init__(tf.PreTrainedConfig())
        self.post_init()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device="meta")))


def loaded(
    folder: Path, stored: Mapping[str, tuple[int, int]], wanted: Mapping[str, tuple[int, int]], rule: WeightConverter
) -> Loaded:
    writer, random, kind = GGUFWriter(folder / "m.gguf", "llama"), np.random.default_rng(3), GGMLQuantizationType.Q4_0
    for name, shape in stored.items():
        writer.add_tensor(name, quantize(random.standard_normal(shape).astype(np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return load_weights(Matrices(wanted), GgufFile(folder / "m.gguf"), rules=[rule])


def test_a_split_matrix(tmp_path: Path) -> None:
    rule = WeightConverter("whole", ["first", "second"], operations=[Chunk(dim=0)])
    made = loaded(tmp_path, {"whole": (8, 64)}, {"first": (4, 64), "second": (4, 64)}, rule)
    for name in ("first", "second"):
        found = made.stored(name)
        assert isinstance(found, Blocks), found
        assert torch.equal(written_out(found), made.store.read(name))


def test_joined_matrices(tmp_path: Path) -> None:
    rule = WeightConverter(["gate", "up"], "both", operations=[Concatenate(dim=0)])
    made = loaded(tmp_path, {"gate": (4, 64), "up": (6, 64)}, {"both": (10, 64)}, rule)
    found = made.stored("both")
    assert isinstance(found, Blocks), found
    assert found.sources == ("gate", "up")
    assert torch.equal(written_out(found), made.store.read("both"))
    assert torch.equal(written_out(found, 3, 6), made.store.read("both")[3:6])


def test_a_transposed_matrix_has_a_reason(tmp_path: Path) -> None:
    rule = WeightConverter("stored", "turned", operations=[Transpose(0, 1)])
    made = loaded(tmp_path, {"stored": (64, 64)}, {"turned": (64, 64)}, rule)
    assert made.stored("turned") == "the model wants its elements in another order than the blocks have"
