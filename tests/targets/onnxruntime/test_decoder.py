"""Decoders on ONNX Runtime: kernels, bytes, and the cache handed on by the runner."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
import transformers as tf
from decoders import capture_model, empty, fused, prompt
from support import random_model
from transformers import AutoModelForCausalLM

from planish_passes import pipeline
from planish_passes.infra import Outcome, run_passes
from planish_passes.interpret import interpret
from planish_passes.pack_linears import PACKED
from planish_passes.program import Program
from planish_passes.quantise import quantized
from planish_passes.weights import WeightFormat
from planish_targets import runner
from planish_targets.contract import Artifact, Recipe, Runner
from planish_targets.onnxruntime import TARGET

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

FORMATS = {
    "float": None,
    "int4": WeightFormat(4, 16, symmetric=False),
    "int4-symmetric": WeightFormat(4, 32),
    "int8": WeightFormat(8, 16),
}
CUTS = (6, 3, 1, 1, 2)


@dataclass(frozen=True)
class Made:
    shared: Program
    yardstick: Program
    form: Outcome
    artifact: Artifact


def source(family: str) -> Program:
    if family != "wide llama":
        return fused(family).program
    # The attention kernel rotates heads of 16 channels and more.
    config = tf.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=128
    )
    captured = capture_model(config, random_model(config, AutoModelForCausalLM))
    return run_passes(captured.program, pipeline.fuse()).program


@cache
def made(family: str, kind: str, last: bool = False) -> Made:
    format = FORMATS[kind]
    recipe = Recipe(kind, format.bits if format else 0)
    shared = run_passes(source(family), pipeline.quantise(format)).program
    numerics = TARGET.numerics(recipe)
    yardstick = run_passes(shared, pipeline.yardstick(numerics.weights, numerics.activations)).program
    if last:
        yardstick = run_passes(yardstick, pipeline.last_token()).program
    form = run_passes(yardstick, (*pipeline.for_target(TARGET.capabilities.keeps, None), *TARGET.passes(recipe)))
    into = Path(mkdtemp(prefix="planish-test-"))
    return Made(shared, yardstick, form, TARGET.lower(form.program, into, recipe))


def chain(program: Program, tokens: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
    calls, start = {}, 0
    for number, length in enumerate(CUTS):
        places = torch.arange(start, start + length)[None]
        call = {"input_ids": tokens[:, start : start + length], "position_ids": places}
        calls[f"step{number}"] = {**call, **(empty(program, 1) if number == 0 else {})}
        start += length
    return calls


def ran(artifact: Artifact, program: Program, tokens: torch.Tensor) -> list[torch.Tensor]:
    command = TARGET.runner(artifact)
    assert isinstance(command, Runner)
    result = runner.run(command, artifact, chain(program, tokens), carry=dict(program.states), returns=("logits",))
    assert isinstance(result, runner.Ran), result
    assert all(set(outputs) == {"logits"} for outputs in result.outputs.values())
    return [result.outputs[f"step{i}"]["logits"] for i in range(len(CUTS))]


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("llama", "float"),
        ("llama", "int4"),
        ("llama", "int4-symmetric"),
        ("llama", "int8"),
        ("gemma2", "int4"),
        ("mistral", "float"),
        ("gpt2", "int4"),
        ("falcon", "float"),
    ],
)
def test_the_artifact_with_its_own_cache_is_the_yardstick_in_one_call(family: str, kind: str) -> None:
    this = made(family, kind)
    tokens = prompt(batch=1, length=sum(CUTS))
    places = torch.arange(sum(CUTS))[None]
    wanted = interpret(this.yardstick, {"input_ids": tokens, "position_ids": places, **empty(this.yardstick, 1)})[
        "logits"
    ]
    found = torch.cat(ran(this.artifact, this.yardstick, tokens), dim=1)
    assert float((found - wanted).abs().max()) < 2e-5 * float(wanted.abs().max())


def nodes(artifact: Artifact) -> Counter[str]:
    return Counter(n.op_type for n in onnx.load(artifact.path, load_external_data=False).graph.node)


def test_a_llama_is_made_of_the_fast_kernels_and_nothing_else() -> None:
    counts = nodes(made("wide llama", "int4", last=True).artifact)
    assert counts["GroupQueryAttention"] == 2
    assert counts["MatMulNBits"] == 9
    assert counts["GatherBlockQuantized"] == 1
    assert counts["SimplifiedLayerNormalization"] == 5
    left = set(counts) - {"GroupQueryAttention", "MatMulNBits", "GatherBlockQuantized", "SimplifiedLayerNormalization"}
    assert left <= {"Add", "Mul", "Split", "QuickGelu", "Slice", "Cast", "ReduceMax", "Reshape"}, left


def test_every_product_runs_in_integers() -> None:
    graph = onnx.load(made("llama", "int4").artifact.path, load_external_data=False).graph
    levels = [a.i for n in graph.node if n.op_type == "MatMulNBits" for a in n.attribute if a.name == "accuracy_level"]
    assert levels == [4] * 9


def test_logits_of_the_last_position_only() -> None:
    this = made("llama", "int4", last=True)
    tokens = prompt(batch=1, length=sum(CUTS))
    every = torch.cat(ran(made("llama", "int4").artifact, this.yardstick, tokens), dim=1)
    found = ran(this.artifact, this.yardstick, tokens)
    ends = [sum(CUTS[: i + 1]) - 1 for i in range(len(CUTS))]
    assert all(f.shape[1] == 1 for f in found)
    assert torch.allclose(torch.cat(found, dim=1), every[:, ends], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["int4", "int4-symmetric", "int8"])
def test_the_files_hold_the_shared_integers(kind: str) -> None:
    this = made("llama", kind)
    found = TARGET.read_weights(this.artifact)
    truth = quantized(this.shared)
    assert any(PACKED in name for name in found) or kind == "int4-symmetric"  # one scale per row, there
    apart: dict[str, Any] = {}
    for name, tensor in found.items():
        at = 0
        for part in name.split(PACKED):
            rows = truth[part].values.shape[0]
            zeros = None if tensor.zero_points is None else tensor.zero_points[at : at + rows]
            apart[part] = (tensor.values[at : at + rows], tensor.scales[at : at + rows], zeros)
            at += rows
    assert set(apart) == set(truth)
    for name, tensor in truth.items():
        values, scales, zeros = apart[name]
        assert torch.equal(values, tensor.values)
        assert torch.equal(scales, tensor.scales)
        assert (zeros is None) == (tensor.zero_points is None)
        assert zeros is None or torch.equal(zeros, tensor.zero_points)


def test_a_tied_head_is_stored_once() -> None:
    artifact = made("gemma2", "int4").artifact
    graph = onnx.load(artifact.path, load_external_data=False).graph
    table = next(n.input[0] for n in graph.node if n.op_type == "GatherBlockQuantized")
    heads = [n for n in graph.node if n.op_type == "MatMulNBits" and n.input[1] == table]
    assert len(heads) == 1


def test_one_buffer_for_past_and_present_is_declared() -> None:
    this = made("llama", "int4")
    assert this.artifact.options["shared_buffers"] == [[past, present] for present, past in this.shared.states]


def test_what_the_kernel_lacks_is_listed_and_still_right() -> None:
    this = made("falcon", "float")
    assert nodes(this.artifact)["GroupQueryAttention"] == 0
    assert "shared_buffers" not in this.artifact.options
