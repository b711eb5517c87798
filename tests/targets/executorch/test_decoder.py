"""Language models with caches inside the .pte: the runtime against the yardstick, and planted defects."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
import transformers as tf
from decoders import capture_model
from pte_files import said
from support import random_model
from torch import Tensor, fx
from torch.fx.passes import tools_common
from transformers import AutoModelForCausalLM

from planish_passes import pipeline
from planish_passes.errors import PlanishError
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret
from planish_passes.program import Program
from planish_passes.quantise import quantized
from planish_passes.weights import WeightFormat
from planish_targets import runner
from planish_targets.contract import Artifact, Recipe, Unavailable
from planish_targets.executorch import TARGET, lean
from planish_targets.executorch.pairs import PINNED
from planish_targets.executorch.pte import open_pte
from planish_targets.executorch.retrace import Memory
from planish_targets.executorch.tables import offsets
from planish_targets.executorch.weights import same

pytest.importorskip("executorch")

CONTEXT = 48
FORMATS = {"int4": WeightFormat(4, 64, symmetric=False), "int8": WeightFormat(8, 32), "float": None}
CUTS = (9, 5, 1, 1, 1, 7)  # a prompt, a part, tokens, a part
TOKENS = torch.randint(3, 128, (1, sum(CUTS)), generator=torch.Generator().manual_seed(1))


_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "head_dim": 16,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(tie_word_embeddings=True, **_SIZES),
    "gemma2": lambda: tf.Gemma2Config(sliding_window=8, attn_logit_softcapping=2.0, query_pre_attn_scalar=16, **_SIZES),
    "gpt_oss": lambda: tf.GptOssConfig(num_local_experts=4, num_experts_per_tok=2, sliding_window=8, **_SIZES),
}


@cache
def floating(family: str) -> Program:
    config = CONFIGS[family]()
    captured = capture_model(config, random_model(config, AutoModelForCausalLM)).program
    return run_passes(captured, pipeline.fuse()).program


@cache
def prepared(family: str, recipe: str) -> tuple[Program, Program]:
    """Yardstick with resident caches, and the form to lower."""
    format = FORMATS[recipe]
    chosen = Recipe(recipe, format.bits if format else 0)
    numerics = TARGET.numerics(chosen)
    passes = (*pipeline.quantise(format), *pipeline.yardstick(numerics.weights, numerics.activations))
    passes += (*pipeline.last_token(), *pipeline.resident(CONTEXT))
    yardstick = run_passes(floating(family), passes).program
    rest = (*pipeline.for_target(TARGET.capabilities.keeps, None), *TARGET.passes(chosen))
    return yardstick, run_passes(yardstick, rest).program


@cache
def made(family: str, recipe: str = "int4") -> Artifact:
    into = Path(mkdtemp(prefix="planish-test-"))
    return TARGET.lower(prepared(family, recipe)[1], into, Recipe(recipe, 4))


@pytest.mark.parametrize(("family", "recipe"), [("llama", "int4"), ("gemma2", "float")])
def test_lowering_says_the_same_without_what_makes_it_cheap(
    family: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cheap = made(family, recipe)
    monkeypatch.setattr(lean, "remembered", lambda: contextlib.nullcontext(Memory()))
    monkeypatch.setattr(lean, "uncompiled", contextlib.nullcontext)
    monkeypatch.setattr(lean, "decompose", lambda *_: None)
    monkeypatch.setattr(lean, "still", contextlib.nullcontext)
    monkeypatch.setattr(lean, "in_place", contextlib.nullcontext)
    monkeypatch.setattr(lean, "skipped", contextlib.nullcontext)
    monkeypatch.setattr(lean, "idle", lambda *_: False)
    monkeypatch.setattr(lean, "in_order", tools_common.legalize_graph)
    monkeypatch.setattr(lean, "write_again", lambda _: None)
    plain = TARGET.lower(prepared(family, recipe)[1], tmp_path, Recipe(recipe, 4))
    assert said(plain.path) == said(cheap.path)
    assert said(made("llama", "int8").path) != said(made("llama", "int4").path)


def feeds() -> dict[str, dict[str, Tensor]]:
    found, start = {}, 0
    for number, length in enumerate(CUTS):
        places = torch.arange(start, start + length)[None]
        found[f"call{number}"] = {"input_ids": TOKENS[:, start : start + length], "position_ids": places}
        start += length
    return found


def truth(program: Program) -> dict[str, Tensor]:
    """Logits of every call by the interpreter."""
    inner = {i for _, i in program.states}
    states = {p.name: torch.zeros([int(d) for d in p.shape]) for p in program.inputs if p.name in inner}
    found = {}
    for name, given in feeds().items():
        result = interpret(program, {**given, **states})
        states = {i: result[o] for o, i in program.states}
        found[name] = result["logits"]
    return found


def run(artifact: Artifact, cases: dict[str, dict[str, Tensor]] | None = None) -> runner.Ran:
    command = TARGET.runner(artifact)
    assert not isinstance(command, Unavailable)
    ran = runner.run(command, artifact, cases or feeds())
    assert isinstance(ran, runner.Ran), ran
    return ran


def difference(artifact: Artifact, yardstick: Program) -> float:
    """The largest over all calls, relative to the largest logit."""
    found, wanted = run(artifact).outputs, truth(yardstick)
    return max(float((found[n]["logits"] - w).abs().max() / w.abs().max()) for n, w in wanted.items())


@pytest.mark.parametrize(
    ("family", "recipe"), [("llama", "int4"), ("llama", "int8"), ("gemma2", "int4"), ("gpt_oss", "int4")]
)
def test_the_runtime_computes_the_yardstick_call_by_call(family: str, recipe: str) -> None:
    """Gemma 2 has a sliding window and caps its scores: attention that executorch's own kernel does not compute."""
    assert difference(made(family, recipe), prepared(family, recipe)[0]) <= 5e-4


def test_a_second_text_sees_nothing_of_the_first() -> None:
    first = feeds()
    again = {f"again {n}": given for n, given in first.items()}
    outputs = run(made("llama"), {**first, **again}).outputs
    for name in first:
        assert torch.equal(outputs[name]["logits"], outputs[f"again {name}"]["logits"])


def test_integers_scales_and_zero_points_come_back() -> None:
    for recipe in ("int4", "int8"):
        found, wanted = TARGET.read_weights(made("llama", recipe)), quantized(prepared("llama", recipe)[0])
        assert found.keys() == wanted.keys()
        assert all(same(found[n], wanted[n]) and found[n].format == wanted[n].format for n in wanted)


def test_one_delegate_between_two_attentions_and_every_linear_in_one() -> None:
    placement = TARGET.placement(made("llama"))
    linears = [n for n in placement.nodes if n.op == "XNNFullyConnected"]
    assert {n.where for n in linears} == {"accelerated"}
    layers = 2
    assert made("llama").options["subgraphs"] == layers + 2  # the last token is cut out between the last two
    outside = [n.op for n in placement.nodes if n.where == "fallback"]
    assert outside.count("llama::custom_sdpa") == layers
    assert outside.count("llama::update_cache") == 2 * layers


def test_runners_of_executorch_find_what_they_ask_for() -> None:
    artifact = made("llama")
    methods = {p.name for p in open_pte(artifact.path).program.execution_plan}
    wanted = {"get_max_seq_len", "get_max_context_len", "get_vocab_size", "use_kv_cache", "enable_dynamic_shape"}
    assert wanted <= methods
    assert artifact.options["inputs"] == ["input_ids", "cache_position"]
    assert artifact.options["outputs"] == ["logits"]
    assert artifact.options["context"] == CONTEXT


def test_caches_are_told_from_activations() -> None:
    artifact = made("llama")
    (method,) = TARGET.placement(artifact).methods
    layers, heads, width = 2, 2, 16
    assert method.memory.states == artifact.options["state_bytes"] == 2 * layers * heads * width * CONTEXT * 4
    assert method.memory.states + method.memory.activations == artifact.options["planned_bytes"]
    assert method.partitions == artifact.options["subgraphs"]


def _attention(program: Program) -> fx.Node:
    return next(n for n in program.graph.nodes if str(n.target) == "planish.resident_attention.default")


def _swap_caches(program: Program) -> None:
    node = _attention(program)
    q, k, v, cache_k, cache_v, *rest = node.args
    node.args = (q, v, k, cache_k, cache_v, *rest)


def _shift_slots(program: Program) -> None:
    """Every later position is one too low: a slot is written twice."""
    slots = next(n for n in program.graph.nodes if n.name == "slots")
    first = next(n for n in program.graph.nodes if n.op == "call_function")
    with program.graph.inserting_before(first):
        moved = program.graph.call_function(torch.ops.aten.clamp.default, (slots, 1))
        shifted = program.graph.call_function(torch.ops.aten.sub.Tensor, (moved, 1))
    moved.meta["val"] = shifted.meta["val"] = slots.meta["val"]
    for reader in [u for u in slots.users if u is not moved]:
        reader.replace_input_with(slots, shifted)


@pytest.mark.parametrize("plant", [_swap_caches, _shift_slots])
def test_a_planted_defect_is_seen(plant: Callable[[Program], None], tmp_path: Path) -> None:
    yardstick, program = prepared("llama", "int4")
    wrong = program.copy()
    plant(wrong)
    artifact = TARGET.lower(wrong, tmp_path, Recipe("int4", 4))
    assert difference(artifact, yardstick) > 1e-2


def _changed(artifact: Artifact, into: Path, change: Callable[[bytes], bytes]) -> Artifact:
    (into / artifact.entry).write_bytes(change(artifact.path.read_bytes()))
    return dataclasses.replace(artifact, folder=into)


def test_dropped_zero_points_are_seen(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    artifact, wanted = made("llama"), quantized(prepared("llama", "int4")[0])[name]
    assert wanted.zero_points is not None
    pinned = wanted.values[:, :PINNED] * wanted.scales[:, :1]
    shifts = (0 - wanted.zero_points.float()) * wanted.scales
    stored, dropped = (torch.cat([s, pinned], 1).numpy().tobytes() for s in (shifts, 0 * shifts))
    assert artifact.path.read_bytes().count(stored) == 1
    wrong = _changed(artifact, tmp_path, lambda data: data.replace(stored, dropped))
    found = TARGET.read_weights(wrong)[name]
    assert found.zero_points is not None
    assert not found.zero_points.any()
    assert not same(found, wanted)
    assert difference(wrong, prepared("llama", "int4")[0]) > 1e-2


def test_scales_in_another_order_do_not_fit_to_zero_points(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    artifact, wanted = made("llama"), quantized(prepared("llama", "int4")[0])[name]
    stored = wanted.scales.flatten().contiguous().numpy().tobytes()
    turned = wanted.scales.flip(0).flatten().contiguous().numpy().tobytes()
    wrong = _changed(artifact, tmp_path, lambda data: data.replace(stored, turned))
    assert artifact.path.read_bytes() != (tmp_path / artifact.entry).read_bytes()
    with pytest.raises(PlanishError, match="do not fit to its scales") as caught:
        TARGET.read_weights(wrong)
    assert caught.value.where == name


def test_transposed_scales_are_seen(tmp_path: Path) -> None:
    """Written by a lowering that takes the scales of groups in the wrong order, and fits everything else to them."""
    name, yardstick = "model.layers.0.mlp.up_proj.weight", prepared("llama", "int8")[0]
    wanted = quantized(yardstick)[name]
    assert wanted.scales.shape[1] > 1
    turned = wanted.scales.t().reshape(wanted.scales.shape)
    planted = dataclasses.replace(yardstick, weights=yardstick.weights.with_tensor(f"{name}.q_scales", turned))
    rest = (*pipeline.for_target(TARGET.capabilities.keeps, None), *TARGET.passes(Recipe("int8", 8)))
    wrong = TARGET.lower(run_passes(planted, rest).program, tmp_path, Recipe("int8", 8))
    found = TARGET.read_weights(wrong)
    assert [n for n, t in quantized(yardstick).items() if not same(found[n], t)] == [name]
    assert torch.equal(found[name].scales, turned)
    assert difference(wrong, yardstick) > 1e-2


def test_dropped_zero_points_of_a_table_are_seen(tmp_path: Path) -> None:
    """Stored as products with their scales; the linear that the table is as well still has them."""
    artifact, name = made("llama"), "lm_head.weight"
    wanted = quantized(prepared("llama", "int4")[0])[name]
    assert wanted.zero_points is not None
    stored = offsets(wanted.scales, wanted.zero_points).numpy().tobytes()
    assert artifact.path.read_bytes().count(stored) == 1
    wrong = _changed(artifact, tmp_path, lambda data: data.replace(stored, bytes(len(stored))))
    with pytest.raises(PlanishError, match="copies of a quantised weight") as caught:
        TARGET.read_weights(wrong)
    assert caught.value.where == name
    assert difference(wrong, prepared("llama", "int4")[0]) > 1e-2


def test_a_truncated_file_is_a_reason_and_no_crash(tmp_path: Path) -> None:
    artifact = _changed(made("llama"), tmp_path, lambda data: data[:-64])
    command: Any = TARGET.runner(artifact)
    broke = runner.run(command, artifact, feeds())
    assert isinstance(broke, runner.Broke)
    assert "is cut off" in broke.reason
    with pytest.raises(PlanishError, match="is cut off"):
        TARGET.read_weights(artifact)
