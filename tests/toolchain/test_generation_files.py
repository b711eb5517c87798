"""A language model through the whole compile, and into the hands of onnxruntime-genai, unmodified."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf
from support import random_model
from transformers import AutoModelForCausalLM

from planish.build import compile_model
from planish.compiled import Compiled, Silent
from planish.generation_files import add_generation_files, special_tokens
from planish.request import Request
from planish.verdict import Failed, NotRun
from planish_targets import reference, registry
from planish_targets.contract import Artifact

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tf.LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=160,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
    )
    into = tmp_path_factory.mktemp("model")
    random_model(config, AutoModelForCausalLM).save_pretrained(into)
    return into


def compiled(folder: Path, recipe: str, targets: tuple[str, ...], workdir: Path, **more: object) -> Compiled:
    request = Request(model=str(folder), targets=targets, recipe=recipe, **more)  # type: ignore[arg-type]
    return compile_model(request, Silent(), workdir)


def test_every_check_of_a_language_model_passes(folder: Path, tmp_path: Path) -> None:
    gates = {"divergence": 10.0, "agreement": 0.0}  # nobody promises quality of random weights
    done = compiled(folder, "int4", ("onnxruntime", "directml"), tmp_path, gates=gates)
    assert not done.failed, done.failed
    for result in done.targets:
        checks = {v.check for v in result.verdicts if not isinstance(v, NotRun)}
        assert {"quality", "weights", "attributes", "lowering", "decoding"} <= checks


def test_no_checks_when_switched_off(folder: Path, tmp_path: Path) -> None:
    done = compiled(folder, "int4", ("onnxruntime",), tmp_path, verify=False, rounding="nearest")
    verdicts = {v.check: v for v in (*done.verdicts, *done.targets[0].verdicts)}
    assert isinstance(verdicts["lowering"], NotRun)
    assert isinstance(verdicts["quality"], NotRun)


def test_targets_without_caches_refuse_by_name(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = replace(reference.TARGET, capabilities=replace(reference.TARGET.capabilities, caches=False))
    monkeypatch.setitem(registry.targets(), "reference", without)
    done = compiled(folder, "float", ("reference",), tmp_path, verify=False)
    (verdict,) = done.targets[0].verdicts
    assert isinstance(verdict, Failed)
    assert "language models" in verdict.reason
    assert "onnxruntime" in verdict.reason


def test_the_tokens_that_begin_and_end_a_text_are_facts_of_the_program() -> None:
    config = tf.LlamaConfig(bos_token_id=1, eos_token_id=[2, 7])
    assert special_tokens(config) == {"bos_token_id": (1,), "eos_token_ids": (2, 7)}
    assert special_tokens(tf.LlamaConfig(bos_token_id=None, eos_token_id=None)) == {}
    assert special_tokens(tf.ViTConfig()) == {}


def test_what_ends_an_answer_is_also_told_by_the_settings_of_generation(tmp_path: Path) -> None:
    config = tf.LlamaConfig(bos_token_id=1, eos_token_id=2)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7, 9]}))
    assert special_tokens(config, tmp_path)["eos_token_ids"] == (2, 7, 9)
    (tmp_path / "generation_config.json").write_text("no JSON")
    assert special_tokens(config, tmp_path)["eos_token_ids"] == (2,)


def test_a_tokenizer_in_another_form_becomes_a_tokenizer_json(tmp_path: Path) -> None:
    model, made = tmp_path / "model", tmp_path / "made"
    model.mkdir()
    made.mkdir()
    (model / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}))
    (model / "merges.txt").write_text("#version: 0.2\na b\n")
    (model / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    source: Any = SimpleNamespace(kind="folder", folder=model, tokenizer_files=model)
    artifact = Artifact("executorch", made, "model.pte")
    program: Any = None  # nothing is asked of it
    assert add_generation_files(artifact, registry.find("executorch"), source, program).notes == ()
    assert json.loads((made / "tokenizer.json").read_text())["model"]["merges"] in (["a b"], [["a", "b"]])


def test_genai_generates_what_the_model_does(folder: Path, tmp_path: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    artifact = compiled(folder, "float", ("onnxruntime",), tmp_path, verify=False).targets[0].artifact
    assert artifact is not None
    config = json.loads((artifact.folder / "genai_config.json").read_text())
    assert config["search"]["past_present_share_buffer"] is True
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    prompt = torch.tensor([[5, 9, 77, 31, 8]])
    with torch.no_grad():
        wanted = model.generate(prompt, max_new_tokens=12, min_new_tokens=12, do_sample=False)[0, 5:].tolist()
    loaded = genai.Model(str(artifact.folder))
    options = genai.GeneratorParams(loaded)
    options.set_search_options(max_length=40, min_length=17, do_sample=False)
    generator = genai.Generator(loaded, options)
    generator.append_tokens(prompt[0].numpy().astype("int32"))
    found = []
    for _ in range(12):
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    assert found == wanted
