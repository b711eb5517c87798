"""Caches of a fixed size compute what growing ones do, whatever they held before."""

import pytest
import torch
from decoders import decoder, empty, fused, logits, prompt
from torch import Tensor

from planish_passes import pipeline
from planish_passes.errors import PlanishError
from planish_passes.infra import run_passes
from planish_passes.program import Program
from planish_passes.specialise import Specialise

CONTEXT, CUTS = 32, [11, 6, *[1] * 7]


def resident(family: str) -> Program:
    return run_passes(fused(family).program, pipeline.resident(CONTEXT)).program


def wanted(family: str) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(decoder(family)[1](input_ids=prompt(batch=1)).logits)


def error(program: Program, truth: Tensor, **how: object) -> float:
    found = logits(program, prompt(batch=1), CUTS, **how)  # type: ignore[arg-type]
    return float((found - truth).abs().max() / truth.abs().max())


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "deepseek_v3", "falcon", "gptj", "gpt2"])
def test_prompt_part_and_tokens_compute_what_the_model_does(family: str) -> None:
    program = resident(family)
    assert error(program, wanted(family)) < 1e-5
    expanded = run_passes(program, pipeline.for_target(frozenset(), None)).program
    assert not any("planish" in name for name in expanded.count())
    assert error(expanded, wanted(family)) < 1e-5


def test_ports_and_states_have_fixed_sizes_and_the_number_of_new_tokens_is_free() -> None:
    program = resident("llama")
    inner = {i for _, i in program.states}
    assert {p.shape[0:3:2] for p in program.inputs if p.name in inner} == {(1, CONTEXT)}
    assert {p.shape for p in program.inputs if p.name not in inner} == {(1, "sequence")}
    assert program.axes == {"sequence": (1, CONTEXT)}
    one = run_passes(program, [Specialise({"sequence": 1})]).program
    assert all(isinstance(d, int) for p in (*one.inputs, *one.outputs) for d in p.shape)


def test_what_a_text_before_left_in_the_cache_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    program = resident("llama")
    dirty = {name: torch.full_like(t, 9.0) for name, t in empty(program, 1).items()}
    monkeypatch.setattr("decoders.empty", lambda *_: dirty)
    assert error(program, wanted("llama")) < 1e-5


def test_a_slot_off_by_one_is_seen() -> None:
    assert error(resident("llama"), wanted("llama"), slots=lambda s: s + (s > 10)) > 1e-3


@pytest.mark.parametrize("family", ["mpt", "gpt_neo"])
def test_models_that_count_cached_tokens_are_refused_by_module(family: str) -> None:
    with pytest.raises(PlanishError, match="counts cached tokens outside its attention") as refusal:
        resident(family)
    assert "transformer" in refusal.value.where
