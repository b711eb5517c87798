"""Small random language models for tests, captured, and the loops that run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
import transformers as tf
from support import random_model, store_of
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from planish.capture import Captured, capture
from planish.tasks import TASKS
from planish_passes import pipeline
from planish_passes.infra import Outcome, run_passes
from planish_passes.interpret import interpret
from planish_passes.program import Program

_HEADS = {"num_attention_heads": 4, "vocab_size": 128, "max_position_embeddings": 256}
_PLAIN = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, **_HEADS}
_GROUPED = {**_PLAIN, "num_key_value_heads": 2}
_TWO = {**_GROUPED, "num_hidden_layers": 2}  # where layers differ
_ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_OLD = {"n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": 128, "n_positions": 256, **_ENDS}
_EXPERTS = {"num_experts_per_tok": 2, "head_dim": 8}
_MIXED = {"sliding_window": 8, "head_dim": 8, **_TWO, **_ENDS}
_CAPPED = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 8}
_LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
_ROUTED = {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}

DECODERS: Mapping[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**_TWO),
    "qwen2": lambda: tf.Qwen2Config(tie_word_embeddings=True, **_GROUPED),
    "qwen3": lambda: tf.Qwen3Config(head_dim=8, **_GROUPED),
    "gemma2": lambda: tf.Gemma2Config(**_CAPPED, **_MIXED),
    "gemma3": lambda: tf.Gemma3TextConfig(layer_types=["sliding_attention", "full_attention"], **_MIXED),
    "phi3": lambda: tf.Phi3Config(**_GROUPED, **_ENDS),
    "mistral": lambda: tf.MistralConfig(sliding_window=8, **_GROUPED),
    "olmo2": lambda: tf.Olmo2Config(**_GROUPED, **_ENDS),
    "smollm3": lambda: tf.SmolLM3Config(no_rope_layers=[1, 0], **_TWO, **_ENDS),
    "granite": lambda: tf.GraniteConfig(**_GROUPED),
    "cohere2": lambda: tf.Cohere2Config(layer_types=["sliding_attention", "full_attention"], **_MIXED),
    "starcoder2": lambda: tf.Starcoder2Config(sliding_window=None, **_GROUPED),
    "stablelm": lambda: tf.StableLmConfig(**_GROUPED),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**_PLAIN),
    "gpt2": lambda: tf.GPT2Config(**_OLD),
    "opt": lambda: tf.OPTConfig(ffn_dim=48, word_embed_proj_dim=32, **_PLAIN),
    "falcon": lambda: tf.FalconConfig(multi_query=True, new_decoder_architecture=False, **_PLAIN),
    "falcon_new": lambda: tf.FalconConfig(new_decoder_architecture=True, num_kv_heads=2, **_PLAIN),
    "mixtral": lambda: tf.MixtralConfig(num_local_experts=4, **_EXPERTS, **_GROUPED),
    "qwen3_moe": lambda: tf.Qwen3MoeConfig(num_experts=4, moe_intermediate_size=16, **_EXPERTS, **_GROUPED),
    "gpt_oss": lambda: tf.GptOssConfig(num_local_experts=4, sliding_window=8, **_EXPERTS, **_TWO),
    "llama4": lambda: tf.Llama4TextConfig(
        num_local_experts=4, num_experts_per_tok=1, head_dim=8, attention_chunk_size=8, no_rope_layers=[1, 0], **_TWO
    ),
    "deepseek_v3": lambda: tf.DeepseekV3Config(
        moe_intermediate_size=16, num_experts_per_tok=2, **_ROUTED, **_LATENT, **{**_TWO, "num_key_value_heads": 4}
    ),
    "bloom": lambda: tf.BloomConfig(hidden_size=32, n_layer=1, n_head=4, vocab_size=128),
    "mpt": lambda: tf.MptConfig(d_model=32, n_layers=1, n_heads=4, vocab_size=128, max_seq_len=256),
    "gptj": lambda: tf.GPTJConfig(rotary_dim=4, **_OLD),
    "gpt_neo": lambda: tf.GPTNeoConfig(
        num_layers=1, attention_types=[[["local"], 1]], num_heads=4, window_size=8, **_PLAIN
    ),
}


def capture_model(config: Any, model: nn.Module) -> Captured:
    """What `planish compile` captures, with weights that are in memory."""
    return capture(AutoModelForCausalLM, config, TASKS["text-generation"], store_of(model))


@cache
def decoder(family: str) -> tuple[Captured, nn.Module]:
    """Captured program and eager model of a family."""
    config = DECODERS[family]()
    model = random_model(config, AutoModelForCausalLM)
    return capture_model(config, model), model


@cache
def fused(family: str) -> Outcome:
    """The program of a family after all fusions."""
    return run_passes(decoder(family)[0].program, pipeline.fuse())


def prompt(batch: int = 2, length: int = 24) -> Tensor:
    """Random tokens, none of them special."""
    return torch.randint(3, 128, (batch, length), generator=torch.Generator().manual_seed(1))


def empty(program: Program, batch: int) -> dict[str, Tensor]:
    """States before the first token."""
    sizes = {"batch": batch, "past": 0}
    states = [p for p in program.inputs if p.name in dict(map(reversed, program.states))]  # type: ignore[arg-type]
    return {p.name: torch.zeros([sizes.get(d, d) for d in p.shape], dtype=p.dtype) for p in states}  # type: ignore[call-overload, misc]


Shift = Callable[[Tensor], Tensor]


def logits(program: Program, tokens: Tensor, cuts: Sequence[int], slots: Shift = lambda s: s) -> Tensor:
    """Logits of all tokens [B, S, V], computed in parts of these lengths.

    Args:
        program: a decoder.
        tokens: [B, S].
        cuts: lengths of the parts; their sum is S.
        slots: changes the places of tokens on the way in, to plant an error.
    """
    states, found, start = empty(program, len(tokens)), [], 0
    for length in cuts:
        places = torch.arange(start, start + length).expand(len(tokens), -1)
        given = {"input_ids": tokens[:, start : start + length], "position_ids": slots(places)}
        result = interpret(program, {**given, **states})
        found.append(result["logits"])
        states, start = {into: result[out] for out, into in program.states}, start + length
    return torch.cat(found, dim=1)


def greedy(program: Program, tokens: Tensor, count: int) -> Tensor:
    """The most likely continuation: [B, count]."""
    states, given, start, made = empty(program, len(tokens)), tokens, 0, []
    for _ in range(count):
        places = torch.arange(start, start + given.shape[1]).expand(len(tokens), -1)
        result = interpret(program, {"input_ids": given, "position_ids": places, **states})
        states, start = {into: result[out] for out, into in program.states}, start + given.shape[1]
        given = result["logits"][:, -1:].argmax(-1)
        made.append(given)
    return torch.cat(made, dim=1)


def difference(program: Program, model: nn.Module, slots: Shift = lambda s: s) -> float:
    """Largest difference to the eager model's logits relative to their largest magnitude: a prompt, a part, tokens."""
    tokens = prompt()
    with torch.no_grad():
        wanted = model(input_ids=tokens).logits
    return float((logits(program, tokens, [9, 5, 1, 1, 1, 7], slots) - wanted).abs().max() / wanted.abs().max())
