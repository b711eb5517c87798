"""What onnxruntime-genai wants beside a decoder: genai_config.json, tokenizer and chat template in one folder."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from planish.source import Source
from planish.tasks.text import load_tokenizer
from planish_passes.program import Program
from planish_targets.contract import Artifact, Target
from planish_targets.text_runner import HasTextRunner

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
_UNREADABLE = (OSError, ValueError, KeyError, ImportError, AttributeError)  # what transformers raises at a tokenizer


def add_generation_files(artifact: Artifact, target: Target, source: Source, program: Program) -> Artifact:
    """Write them into the folder of an ONNX artifact; where apps use a runner that asks the program for the rest, the
    tokenizer alone. Artifacts of other kinds are left alone."""
    runs = isinstance(target, HasTextRunner)
    if not runs and not artifact.entry.endswith(".onnx"):
        return artifact
    notes = _add_tokenizer(artifact, source)
    if isinstance(target, HasTextRunner):
        return replace(artifact, notes=(*artifact.notes, *notes, *target.fit_tokenizer(artifact.folder)))
    config = genai_config(artifact, source.config, program)
    (artifact.folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return replace(artifact, notes=(*artifact.notes, *notes))


def _add_tokenizer(artifact: Artifact, source: Source) -> tuple[str, ...]:
    """The model's own files; a tokenizer.json where it keeps its tokenizer in another form. Returns notes."""
    if source.kind != "gguf":  # the neighbours of a single file may belong to anything
        for name in TOKENIZER_FILES:
            if (source.folder / name).is_file():
                shutil.copyfile(source.folder / name, artifact.folder / name)
    if (artifact.folder / TOKENIZER_FILES[0]).is_file():
        return ()
    try:
        tokenizer = load_tokenizer(source.tokenizer_files)
        if tokenizer is not None and tokenizer.is_fast:
            tokenizer.save_pretrained(artifact.folder)
    except _UNREADABLE as problem:
        return (f"the tokenizer cannot be opened ({problem}): the artifact has no tokenizer.json",)
    return ()


def special_tokens(config: Any, folder: Path | None = None) -> dict[str, tuple[int, ...]]:
    """ "bos_token_id" and "eos_token_ids", as far as the config names them.

    Args:
        config: the model's.
        folder: tokens that end a text are also what generation_config.json and the tokenizer in it say: chat models
            often name the end of an answer there alone.
    """
    named = {"bos_token_id": _numbers(getattr(config, "bos_token_id", None))[:1]}
    ends = dict.fromkeys(_numbers(getattr(config, "eos_token_id", None)))
    if folder is not None:
        ends.update(dict.fromkeys(_more_ends(folder)))
    named["eos_token_ids"] = list(ends)
    return {name: tuple(value) for name, value in named.items() if value}


def _numbers(value: object) -> list[int]:
    """One token or several, as a list; [] for what is none."""
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool)]


def _more_ends(folder: Path) -> list[int]:
    found: list[int] = []
    settings = folder / "generation_config.json"
    if settings.is_file():
        with contextlib.suppress(ValueError, AttributeError):  # transformers reads it too, and says what is wrong
            found += _numbers(json.loads(settings.read_text("utf-8")).get("eos_token_id"))
    with contextlib.suppress(*_UNREADABLE):  # whoever needs it says so: the checks and the artifact's notes
        found += _numbers(getattr(load_tokenizer(folder), "eos_token_id", None))
    return found


def genai_config(artifact: Artifact, config: Any, program: Program) -> dict[str, Any]:
    """The configuration of onnxruntime-genai for an artifact.

    Args:
        artifact: its target decides the execution provider.
        config: the model's config.
        program: names and shapes of the cache.
    """
    layers = len(program.states) // 2
    ends = list(program.facts.get("eos_token_ids", ()))
    keys = next(p for p in program.inputs if p.name == program.states[0][1])
    options: list[dict[str, Any]] = [{"dml": {}}] if artifact.target == "directml" else []
    length = program.axes["past"][1]
    return {
        "model": {
            "type": "decoder",  # a kind that names no family: the loop reads everything else from this file
            "bos_token_id": config.bos_token_id,
            "eos_token_id": ends[0] if len(ends) == 1 else ends or config.eos_token_id,
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
