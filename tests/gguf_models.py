"""Tiny llama models as GGUF files, each tensor of a type of its own; written as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter, dequantize, quantize
from torch import Tensor
from transformers.convert_slow_tokenizer import bytes_to_unicode

HIDDEN, WIDE, HEADS, KV_HEADS, LAYERS = 64, 256, 4, 2, 1
WIDTH = HIDDEN // HEADS
Kinds = Callable[[str], str]

_TOKENS = [*bytes_to_unicode().values(), "Ġt", "he"]
VOCABULARY = len(_TOKENS) + 6
SHAPES = {
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (KV_HEADS * WIDTH, HIDDEN),
    "attn_v": (KV_HEADS * WIDTH, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_gate": (WIDE, HIDDEN),
    "ffn_up": (WIDE, HIDDEN),
    "ffn_down": (HIDDEN, WIDE),
}
NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def write_llama(path: Path, kinds: str | Kinds, *, tied: bool = True) -> Path:
    """A random model.

    Args:
        kinds: GGUF name -> ggml's name of the type of that matrix ("Q4_0", "Q6_K", "F16", ...), or one for all.
        tied: no matrix for the output layer.
    """
    of: Kinds = (lambda name: str(kinds)) if isinstance(kinds, str) else kinds
    writer, random = GGUFWriter(path, "llama"), np.random.default_rng(0)
    _describe(writer)
    matrices = {"token_embd.weight": (VOCABULARY, HIDDEN)}
    matrices |= {} if tied else {"output.weight": (VOCABULARY, HIDDEN)}
    matrices |= {f"blk.{n}.{kind}.weight": shape for n in range(LAYERS) for kind, shape in SHAPES.items()}
    for name, shape in matrices.items():
        _add(writer, name, (random.standard_normal(shape) * 0.3).astype(np.float32), of(name), random)
    norms = ["output_norm"] + [f"blk.{n}.{kind}_norm" for n in range(LAYERS) for kind in ("attn", "ffn")]
    for name in norms:
        writer.add_tensor(f"{name}.weight", (1 + 0.1 * random.standard_normal(HIDDEN)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _describe(writer: GGUFWriter) -> None:
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*_TOKENS, *(f"<{n}>" for n in range(6))])
    writer.add_token_merges(["Ġ t", "h e"])
    writer.add_bos_token_id(VOCABULARY - 1)
    writer.add_eos_token_id(VOCABULARY - 2)


def _add(writer: GGUFWriter, name: str, values: np.ndarray, kind: str, random: np.random.Generator) -> None:
    stored = GGMLQuantizationType[kind]
    if kind == "Q6_K":  # which gguf can read and not write: any bytes will do, but for the scale of a block
        block, size = GGML_QUANT_SIZES[stored]
        raw = random.integers(0, 256, (values.shape[0], values.shape[1] // block, size), dtype=np.uint8)
        raw[..., -2:] = np.frombuffer(np.float16(1e-4).tobytes(), np.uint8)
        writer.add_tensor(name, raw.reshape(values.shape[0], -1), raw_dtype=stored)
    elif kind in ("F32", "F16"):
        writer.add_tensor(name, values.astype(np.float32 if kind == "F32" else np.float16))
    else:
        writer.add_tensor(name, quantize(values, stored), raw_dtype=stored)


def stored_values(path: Path) -> dict[str, Tensor]:
    """Every matrix under transformers' name, unpacked by the gguf package, rows in transformers' order."""
    found = {}
    for tensor in GGUFReader(path).tensors:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if values.dim() == 2:
            found[_name(tensor.name)] = _halves(values, tensor.name)
    return found


def _name(name: str) -> str:
    if not name.startswith("blk."):
        return {"token_embd.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight"}[name]
    _, layer, kind, _ = name.split(".")
    return f"model.layers.{layer}.{NAMES[kind]}.weight"


def _halves(values: Tensor, name: str) -> Tensor:
    """llama.cpp interleaves the two halves of each head of queries and keys."""
    heads = HEADS if ".attn_q." in name else KV_HEADS if ".attn_k." in name else 0
    if not heads:
        return values
    return values.view(heads, WIDTH // 2, 2, -1).transpose(1, 2).reshape(values.shape)
