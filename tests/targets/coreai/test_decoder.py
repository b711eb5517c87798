"""Language models: caches as states of two functions, held to 64 tokens of the yardstick; defects of caches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch
from decoders import fused, logits, prompt
from torch import Tensor

from planish.verdict import Failed, Passed
from planish.verify.decoder_exam import GENERATED
from planish.verify.decoding import PARTS, check_decoding, late_case
from planish.verify.lowering import Execution
from planish_passes import pipeline
from planish_passes.errors import PlanishError
from planish_passes.infra import run_passes
from planish_passes.program import Program
from planish_passes.quantise import quantized
from planish_passes.weights import WeightFormat
from planish_targets.contract import Artifact, Recipe
from planish_targets.coreai import TARGET, run
from planish_targets.coreai.asset import PROGRAM
from planish_targets.serve import Call

for package in ("coreai", "coreai_torch"):
    pytest.importorskip(package, reason="needs pip install 'planish[coreai]'")

CONTEXT, CHUNK, CUTS = 96, 8, [11, 6, *[1] * 7]
RECIPES = {"float": None, "int4": WeightFormat(4, 16, symmetric=False)}


@cache
def prepared(family: str, recipe: str) -> tuple[Program, Program]:
    """Yardstick with caches that grow, and the form to lower."""
    yardstick = run_passes(fused(family).program, pipeline.quantise(RECIPES[recipe])).program
    keeps = TARGET.capabilities.keeps
    order = (*pipeline.resident(CONTEXT), *pipeline.for_target(keeps, None), *TARGET.passes(Recipe(recipe)))
    return yardstick, run_passes(yardstick, order).program


def lowered(form: Program) -> Artifact:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planish_targets.coreai.target.CHUNKS", (1, CHUNK))
        return TARGET.lower(form, Path(mkdtemp(prefix="planish-test-")), Recipe("int4", 4))


@cache
def made(family: str, recipe: str = "float") -> Artifact:
    return lowered(prepared(family, recipe)[1])


def told(artifact: Artifact, *texts: Tensor) -> Tensor:
    """Logits of the last text, fed in parts of `CUTS`, all texts by one loaded model."""
    model, found = run.load(Call(artifact.path, artifact.options, 1)), list[Tensor]()
    for tokens in texts:
        found, at = [], 0
        for count in CUTS:
            places = torch.arange(at, at + count)[None]
            found.append(model({"input_ids": tokens[:, at : at + count], "position_ids": places})["logits"])
            at += count
    return torch.cat(found, 1)


def error(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).abs().max() / truth.abs().max())


@pytest.mark.parametrize(("family", "recipe"), [("llama", "int4"), ("gemma2", "float")])
def test_64_tokens_of_its_own_cache(family: str, recipe: str) -> None:
    yardstick, story = prepared(family, recipe)[0], prompt(batch=1, length=sum(PARTS) + GENERATED)
    late, numerics = late_case(yardstick, 5, CONTEXT), TARGET.numerics(Recipe(recipe))
    verdict = check_decoding(TARGET, made(family, recipe), yardstick, story, late, Execution(), numerics)
    assert isinstance(verdict, Passed), verdict


def test_functions_fold_constants_of_their_own() -> None:
    """GPT-J makes its masks from numbers of tokens: equal names, other values in each function."""
    tokens = prompt(batch=1)
    assert error(told(made("gptj"), tokens), logits(prepared("gptj", "float")[0], tokens, CUTS)) < 2e-6


def test_integers_are_stored_once_for_both_functions() -> None:
    artifact, truth = made("llama", "int4"), quantized(prepared("llama", "int4")[0])
    found = TARGET.read_weights(artifact)
    assert found.keys() == truth.keys()
    for name, tensor in truth.items():
        assert torch.equal(found[name].values, tensor.values)
        assert torch.equal(found[name].scales, tensor.scales)
        assert tensor.zero_points is not None
        assert torch.equal(found[name].zero_points, tensor.zero_points)  # type: ignore[arg-type]
    codes = next(iter(truth.values())).values.view(torch.uint8) & 15
    packed = (codes[:, 1::2] << 4 | codes[:, ::2]).numpy().tobytes()
    assert (artifact.path / PROGRAM).read_bytes().count(packed) == 1


def test_ports_states_and_epsilons_of_both_functions() -> None:
    artifact, described = made("llama", "int4"), TARGET.inspect(made("llama", "int4").path)
    assert artifact.context == CONTEXT
    assert artifact.options["functions"] == {"decode": 1, "prefill": CHUNK}
    assert described is not None
    caches = [f"past_key_values.{n}.{kind}" for n in range(2) for kind in ("key", "value")]
    assert described["states"] == [{"name": n, "shape": [1, 2, CONTEXT, 8], "dtype": "float32"} for n in caches]
    assert [p["name"] for p in described["inputs"]] == ["input_ids", "position_ids"]  # type: ignore[attr-defined]
    stated = TARGET.read_attributes(artifact)
    assert list(stated) == [f"model.aimodel, function {name}" for name in ("decode", "prefill")]
    assert all(len(found) == 5 and all(a.module for a in found) for found in stated.values())


def test_a_second_text_sees_nothing_of_the_first() -> None:
    tokens = prompt(batch=1)
    truth = logits(prepared("llama", "int4")[0], tokens, CUTS)
    assert error(told(made("llama", "int4"), tokens.flip(1), tokens), truth) < 2e-6


def test_swapped_caches_fail_the_check() -> None:
    yardstick, form = prepared("llama", "int4")
    (key, into_key), (value, into_value), *rest = form.states
    artifact = lowered(replace(form, states=((key, into_value), (value, into_key), *rest)))
    story, late = prompt(batch=1, length=sum(PARTS) + 8), late_case(yardstick, 5, CONTEXT)
    numerics = TARGET.numerics(Recipe("int4", 4))
    verdict = check_decoding(TARGET, artifact, yardstick, story, late, Execution(), numerics)
    assert isinstance(verdict, Failed)


def test_states_must_be_zeroed_by_whoever_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """An NDArray that is made from a state's description holds chance: NaN times a weight of zero is NaN."""
    from coreai.runtime import NDArray

    def chance(options: Mapping[str, object]) -> dict[str, NDArray]:
        states = options["states"]
        assert isinstance(states, Mapping)
        return {name: NDArray(np.full(shape, np.nan, np.float32)) for name, shape in states.items()}

    monkeypatch.setattr(run, "_zeros", chance)
    assert bool(told(made("llama", "int4"), prompt(batch=1)).isnan().any())


def test_a_cache_that_is_returned_as_it_came_is_refused() -> None:
    form = prepared("llama", "int4")[1]
    (key, into_key), (_, into_value), *rest = form.states
    with pytest.raises(PlanishError, match="a cache is returned as it came, or as another one"):
        lowered(replace(form, states=((key, into_key), (key, into_value), *rest)))
