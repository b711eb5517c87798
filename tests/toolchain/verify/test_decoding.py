"""Checks of language models: right artifacts pass, and each planted defect of a decoder is seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from decoders import decoder, fused, prompt

from planish.recipes import find_recipe
from planish.request import Gates
from planish.tasks.generation import SLOTS, TOKENS
from planish.verdict import Failed, Passed
from planish.verify.decoder_exam import DecoderExam
from planish.verify.decoding import PARTS, check_decoding, late_case
from planish.verify.logits import divergence, empty_cache, feed, in_calls, one_call, top1
from planish.verify.lowering import Execution
from planish.verify.together import alone
from planish_passes import pipeline
from planish_passes.infra import run_passes
from planish_passes.match import is_op
from planish_passes.program import Program
from planish_targets.contract import Artifact, Numerics, Recipe
from planish_targets.onnxruntime import TARGET

pytest.importorskip("onnxruntime")
FLOAT = Recipe("float")


def lowered(program: Program, into: Path) -> Artifact:
    passes = (*pipeline.for_target(TARGET.capabilities.keeps, None), *TARGET.passes(FLOAT))
    return TARGET.lower(run_passes(program, passes).program, into, FLOAT)


def slots_off_by_one(program: Program) -> Program:
    place = next(n for n in program.graph.nodes if n.op == "placeholder" and n.name.endswith("slots"))
    for node in program.graph.nodes:
        if is_op(node, "planish.rope"):
            with program.graph.inserting_before(node):
                later = program.graph.call_function(torch.ops.aten.add.Tensor, (place, 1))
            later.meta = dict(place.meta)
            node.args = (node.args[0], later, *node.args[2:])
            return program
    raise AssertionError("no rope")


def another_base(program: Program) -> Program:
    store = program.weights
    for name in [n for n in store if n.endswith("_table")]:
        sine, shape = "sin" in name, store.spec(name).shape

        def table(sine: bool = sine, spec: tuple[int, ...] = shape) -> torch.Tensor:
            base = 1e6 ** -(torch.arange(spec[1]) / spec[1])
            angles = torch.arange(spec[0])[:, None] * base
            return torch.sin(angles) if sine else torch.cos(angles)

        store = store.with_lazy(name, store.spec(name), table, ())
    return replace(program, weights=store)


def no_cap(program: Program) -> Program:
    for node in program.graph.nodes:
        if is_op(node, "planish.cached_attention"):
            node.args = (*node.args[:9], 0.0, *node.args[10:])
    return program


def no_window(program: Program) -> Program:
    for node in program.graph.nodes:
        if is_op(node, "planish.cached_attention"):
            node.args = (*node.args[:10], 0, *node.args[11:])
    return program


DEFECTS: dict[str, tuple[str, Callable[[Program], Program] | None]] = {
    "none, llama": ("llama", None),
    "none, gemma2": ("gemma2", None),
    "cache slot off by one": ("llama", slots_off_by_one),
    "wrong rope base": ("llama", another_base),
    "missing soft cap": ("gemma2", no_cap),
    "lost window": ("gemma2", no_window),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_an_artifact_fed_with_its_own_cache(name: str, tmp_path: Path) -> None:
    family, defect = DEFECTS[name]
    truth = fused(family).program
    artifact = lowered(truth if defect is None else defect(truth.copy()), tmp_path)
    story = prompt(batch=1, length=sum(PARTS) + 12)
    late = late_case(truth, 5)
    verdict = check_decoding(TARGET, artifact, truth, story, late, Execution(), Numerics())
    assert isinstance(verdict, Passed if defect is None else Failed), verdict


def test_late_tokens_are_near_the_models_limit() -> None:
    case = late_case(fused("llama").program, 5)
    assert 240 < int(case.inputs[SLOTS]) < 256
    assert case.inputs["past_key_values.0.key"].shape[2] == int(case.inputs[SLOTS])


def test_a_text_in_parts_is_the_text_in_one_call() -> None:
    program, tokens = fused("gemma2").program, prompt(batch=1, length=20)
    parts = in_calls(program, tokens, (9, 1, 1, 9))
    assert torch.allclose(parts, one_call(program, tokens), rtol=0, atol=1e-5)


def test_divergence_is_that_of_the_definition() -> None:
    truth, found = torch.randn(1, 3, 7), torch.randn(1, 3, 7)
    wanted = torch.nn.functional.kl_div(
        found.double().log_softmax(-1), truth.double().log_softmax(-1), reduction="none", log_target=True
    )
    assert torch.allclose(divergence(found, truth), wanted.sum(-1).flatten())
    assert float(divergence(truth, truth).abs().max()) < 1e-12
    assert top1(truth, truth) == 1.0


def test_exam_passes_the_model_and_fails_another() -> None:
    model = decoder("llama")[1]
    exam = DecoderExam.of(model, prompt(batch=1, length=30), 256, find_recipe("float"), Gates())
    program = fused("llama").program
    assert isinstance(exam.capture(program), Passed)
    assert isinstance(alone(exam.quality(program)), Passed)
    wrong = another_base(program.copy())
    assert isinstance(exam.capture(wrong), Failed)
    strict = replace(exam, gates=Gates(divergence=1e-9))
    assert isinstance(alone(strict.quality(program)), Passed)
    assert isinstance(alone(strict.quality(wrong)), Failed)


def test_calls_hold_what_the_program_takes() -> None:
    program = fused("llama").program
    given = feed(program, torch.tensor([[4, 5]]), empty_cache(program), start=3)
    assert set(given) == {p.name for p in program.inputs}
    assert given[SLOTS].tolist() == [[3, 4]]
    assert given[TOKENS].tolist() == [[4, 5]]
