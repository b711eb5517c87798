"""What onnxruntime-genai wants beside a decoder: genai_config.json, tokenizer and chat template in one folder."""

from __future__ import annotations

import json
import shutil
from typing import Any

from planish.source import Source
from planish_passes.program import Program
from planish_targets.contract import Artifact

CONFIG = "genai_config.json"
MAX_LENGTH = 2048  # tokens that buffers are made for unless the app says more: caches are allocated up front
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)


def add_generation_files(artifact: Artifact, source: Source, program: Program) -> None:
    """Write them into the folder of an ONNX artifact; of an ExecuTorch one, whose runner asks the program for the
    rest, the tokenizer alone. Artifacts of other kinds are left alone."""
    if not artifact.entry.endswith((".onnx", ".pte")):
        return
    for name in TOKENIZER_FILES:
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, artifact.folder / name)
    if artifact.entry.endswith(".pte"):
        return
    config = genai_config(artifact, source.config, program)
    (artifact.folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def special_tokens(config: Any) -> dict[str, tuple[int, ...]]:
    """ "bos_token_id" and "eos_token_ids", as far as the config names them."""
    keys = {"bos_token_id": "bos_token_id", "eos_token_ids": "eos_token_id"}
    named = {name: getattr(config, key, None) for name, key in keys.items()}
    given = {name: tuple(value) if isinstance(value, list) else (value,) for name, value in named.items()}
    return {name: value for name, value in given.items() if value and all(isinstance(v, int) for v in value)}


def genai_config(artifact: Artifact, config: Any, program: Program) -> dict[str, Any]:
    """The configuration of onnxruntime-genai for an artifact.

    Args:
        artifact: its target decides the execution provider.
        config: the model's config.
        program: names and shapes of the cache.
    """
    layers = len(program.states) // 2
    keys = next(p for p in program.inputs if p.name == program.states[0][1])
    options: list[dict[str, Any]] = [{"dml": {}}] if artifact.target == "directml" else []
    length = program.axes["past"][1]
    return {
        "model": {
            "type": "decoder",  # a kind that names no family: the loop reads everything else from this file
            "bos_token_id": config.bos_token_id,
            "eos_token_id": config.eos_token_id,
            "pad_token_id": _first(config.pad_token_id, config.eos_token_id),
            "vocab_size": config.vocab_size,
            "context_length": length,
            "decoder": {
                "filename": artifact.entry,
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": options},
                "head_size": keys.shape[3],
                "hidden_size": getattr(config, "hidden_size", 0),
                "num_attention_heads": config.num_attention_heads,
                "num_hidden_layers": layers,
                "num_key_value_heads": keys.shape[1],
                "inputs": {
                    "input_ids": "input_ids",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": min(length, MAX_LENGTH),
            "min_length": 0,
            "num_beams": 1,
            "past_present_share_buffer": bool(artifact.options.get("shared_buffers")),
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }


def _first(*candidates: Any) -> Any:
    value = next((c for c in candidates if c is not None), 0)
    return value[0] if isinstance(value, list) else value
