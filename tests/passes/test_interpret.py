import pytest
import torch
from support import FAMILIES, capture_family, feed

from planish_passes.interpret import interpret


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
