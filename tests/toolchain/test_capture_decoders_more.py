"""The families of the issue's list that test_capture_decoders.py leaves out."""

import pytest
from decoders import decoder, difference, fused

COUNTS = {
    "qwen3": (1, 0, 2, 5, 1),
    "gemma3": (2, 0, 4, 13, 2),
    "phi3": (1, 0, 2, 3, 1),
    "olmo2": (1, 0, 2, 5, 1),
    "granite": (1, 0, 2, 3, 1),
    "starcoder2": (1, 0, 2, 0, 0),
    "stablelm": (1, 0, 2, 0, 1),
    "gpt_neox": (1, 0, 2, 0, 0),
    "opt": (1, 0, 0, 0, 0),
    "falcon_new": (0, 1, 2, 0, 0),
    "qwen3_moe": (1, 0, 2, 5, 1),
}
KINDS = ("planish.cached_attention", "planish.attention", "planish.rope", "planish.rms_norm", "planish.gated")


@pytest.mark.parametrize("family", COUNTS)
def test_prompt_part_and_tokens_are_those_of_the_model(family: str) -> None:
    program = fused(family).program
    assert difference(program, decoder(family)[1]) < 1e-5
    assert tuple(program.count()[k] for k in KINDS) == COUNTS[family]
