from dataclasses import replace
from pathlib import Path

import pytest
import torch
from decoders import empty, fused, prompt
from support import FAMILIES, capture_family, feed

from planish_passes import interpret as interpreter
from planish_passes import pipeline
from planish_passes.infra import run_passes
from planish_passes.interpret import Run, interpret, interpret_all
from planish_passes.settle import settle_quantised
from planish_passes.weights import WeightFormat, WeightStore


@pytest.mark.parametrize("family", FAMILIES)
def test_the_captured_program_computes_what_the_model_computes(family: str) -> None:
    captured, model = capture_family(family)
    given = feed(captured.program)
    with torch.no_grad():
        expected = model(**given).last_hidden_state
    found = interpret(captured.program, given)["last_hidden_state"]
    if "attention_mask" in given:
        keep = given["attention_mask"].bool()
        found, expected = found[keep], expected[keep]
    assert (found - expected).abs().max() < 2e-6


def test_float64_and_float16_show_rounding() -> None:
    program = capture_family("bert")[0].program
    given = feed(program)
    plain, exact, coarse = (
        interpret(program, given, **options)["last_hidden_state"].double()
        for options in ({}, {"compute": torch.float64}, {"round_to": torch.float16})
    )
    assert 0 < float((plain - exact).abs().max()) < 1e-5
    assert 1e-5 < float((coarse - exact).abs().max()) < 1e-1


def test_forced_values_take_the_place_of_computed_ones() -> None:
    program = capture_family("bert")[0].program
    given, seen = feed(program), {}
    first = interpret(program, given, tap=lambda n, v: seen.setdefault(n.name, v.clone()))["last_hidden_state"]
    name = next(n for n in seen if n.startswith("gelu"))
    forced = {name: torch.zeros_like(seen[name])}
    assert not torch.equal(interpret(program, given, forced=forced)["last_hidden_state"], first)


@pytest.mark.parametrize("format", [WeightFormat(4, 32, symmetric=False), WeightFormat(8)])
def test_large_weights_are_read_in_rows_and_give_the_same(
    format: WeightFormat, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = run_passes(fused("llama").program, pipeline.quantise(format)).program
    program = settle_quantised(
        run_passes(program, pipeline.yardstick(torch.float32, "int8_by_block")).program, tmp_path
    )
    tokens = prompt(1, 9)
    given = {"input_ids": tokens, "position_ids": torch.arange(9)[None], **empty(program, 1)}
    whole = interpret(program, given)["logits"]
    monkeypatch.setattr(interpreter, "LARGE", 0)
    monkeypatch.setattr(interpreter, "BLOCK", 320)
    monkeypatch.setattr(WeightStore, "spans", lambda self, name: ((0, 1), (1, 2)))
    read: list[str] = []
    rows = WeightStore.rows
    monkeypatch.setattr(WeightStore, "rows", lambda self, name, *span: read.append(name) or rows(self, name, *span))
    found = interpret(program, given)["logits"]
    assert (found - whole).abs().max() < 1e-5 * whole.abs().max()
    table = [n for n in read if "embed" in n and n.endswith("q_values")]
    assert len(table) == len(tokens.unique())  # and no row that is not asked for
    assert len(read) > 100


def test_runs_that_go_together_give_what_each_gives_alone() -> None:
    program = run_passes(fused("llama").program, pipeline.quantise(WeightFormat(4, 32, symmetric=False))).program
    scales = {n: program.weights.read(n) * 1.01 for n in program.weights if n.endswith(".q_scales")}
    given = [{"input_ids": prompt(1, n), "position_ids": torch.arange(n)[None], **empty(program, 1)} for n in (9, 4)]
    runs = [
        *(Run(inputs) for inputs in given),
        Run(given[0], torch.float64),
        Run(given[0], round_to=torch.float16),
        Run(given[1], instead=scales),
    ]
    together = interpret_all(program, runs)
    for run, found in zip(runs, together, strict=True):
        assert all(torch.equal(value, interpret_all(program, [run])[0][name]) for name, value in found.items())
    shaken = program.weights
    for name, value in scales.items():
        shaken = shaken.with_tensor(name, value)
    assert torch.equal(together[4]["logits"], interpret(replace(program, weights=shaken), given[1])["logits"])
    assert not torch.equal(together[4]["logits"], together[1]["logits"])


def test_a_weight_is_read_once_for_all_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    program = run_passes(fused("llama").program, pipeline.quantise(WeightFormat(8))).program
    given = {"input_ids": prompt(1, 5), "position_ids": torch.arange(5)[None], **empty(program, 1)}
    names: list[str] = []
    read = WeightStore.read
    monkeypatch.setattr(WeightStore, "read", lambda self, name: names.append(name) or read(self, name))
    interpret(program, given)
    once = len(names)
    interpret_all(program, [Run(given), Run({**given, "input_ids": given["input_ids"].flip(1)}, returns=("logits",))])
    assert len(names) == 2 * once


def test_what_is_not_returned_is_not_kept() -> None:
    program = fused("llama").program
    given = {"input_ids": prompt(1, 5), "position_ids": torch.arange(5)[None], **empty(program, 1)}
    (found,) = interpret_all(program, [Run(given, returns=("logits",))])
    assert set(found) == {"logits"}
    assert torch.equal(found["logits"], interpret(program, given)["logits"])
