"""One set of integers: what is read from a .pte (or its .ptd) is what is read from the ONNX artifact, bit for bit."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
import transformers as tf
from decoders import capture_model
from support import random_model
from transformers import AutoModelForCausalLM

from planish_passes import pipeline
from planish_passes.infra import run_passes
from planish_passes.pack_linears import PACKED
from planish_passes.program import Program
from planish_passes.quantise import quantized
from planish_passes.weights import QuantizedTensor, WeightFormat
from planish_targets import registry
from planish_targets.contract import Artifact, Recipe, SplitsWeights, Target

pytest.importorskip("executorch")
pytest.importorskip("onnxruntime")

FORMATS = {
    "int8": WeightFormat(8, 32),
    "int8 per channel": WeightFormat(8),
    "int4": WeightFormat(4, 32, symmetric=False),
}
TABLE, HEAD, LINEAR = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.down_proj.weight"


@cache
def quantised(recipe: str, tied: bool) -> Program:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = tf.LlamaConfig(
        num_key_value_heads=2, vocab_size=128, max_position_embeddings=64, tie_word_embeddings=tied, **sizes
    )
    captured = capture_model(config, random_model(config, AutoModelForCausalLM)).program
    return run_passes(captured, (*pipeline.fuse(), *pipeline.quantise(FORMATS[recipe]))).program


def lowered(target: Target, program: Program, into: Path) -> Artifact:
    recipe = Recipe("test", 4)
    numerics, can = target.numerics(recipe), target.capabilities
    passes = (*pipeline.yardstick(numerics.weights, numerics.activations), *pipeline.last_token())
    passes += pipeline.resident(48) if can.resident else ()
    passes += (*pipeline.for_target(can.keeps, None), *target.passes(recipe))
    into.mkdir()
    return target.lower(run_passes(program, passes).program, into, recipe)


def integers(target: Target, artifact: Artifact, program: Program) -> dict[str, QuantizedTensor]:
    """By the model's own names: weights that lie one behind the other apart."""
    rows = {name: t.values.shape[0] for name, t in quantized(program).items()}
    found: dict[str, QuantizedTensor] = {}
    for whole, tensor in target.read_weights(artifact).items():
        at = 0
        for name in whole.split(PACKED):
            span = slice(at, at := at + rows[name])
            zeros = None if tensor.zero_points is None else tensor.zero_points[span]
            found[name] = QuantizedTensor(tensor.values[span], tensor.scales[span].float(), zeros, tensor.format)
    return found


@pytest.mark.parametrize("recipe", FORMATS)
def test_linears_and_tables_are_the_same_in_both(recipe: str, tmp_path: Path) -> None:
    tied, split = recipe == "int4", recipe != "int8 per channel"
    program, executorch, onnx = quantised(recipe, tied), registry.find("executorch"), registry.find("onnxruntime")
    assert isinstance(executorch, SplitsWeights)
    form = executorch.with_split_weights() if split else executorch
    ours = integers(executorch, lowered(form, program, tmp_path / "pte"), program)
    assert (tmp_path / "pte" / "model.ptd").is_file() == split
    theirs = integers(onnx, lowered(onnx, program, tmp_path / "onnx"), program)
    assert ours.keys() == theirs.keys() == quantized(program).keys() >= {LINEAR}
    assert len(ours.keys() & {TABLE, HEAD}) == (1 if tied else 2)
    for name, tensor in ours.items():
        other = theirs[name]
        assert torch.equal(tensor.values, other.values), name
        assert torch.equal(tensor.scales, other.scales.view_as(tensor.scales)), name
        assert (tensor.zero_points is None) == (other.zero_points is None) == FORMATS[recipe].symmetric, name
        if tensor.zero_points is not None and other.zero_points is not None:
            assert torch.equal(tensor.zero_points, other.zero_points.view_as(tensor.zero_points)), name
