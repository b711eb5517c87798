"""Models that do attention, masks, caches or positions in another way."""

import pytest
from decoders import decoder, difference, fused

# (cached attention, attention, rope, root-mean-square norms, refusal that must be listed)
EXPECTED = {
    "gpt_oss": (2, 0, 4, 5, None),
    "llama4": (2, 0, 0, 7, "rotary positions of another form"),
    "deepseek_v3": (0, 2, 0, 9, "keys are not a cache with new ones appended"),
    "bloom": (0, 0, 0, 0, None),
    "mpt": (0, 0, 0, 0, None),
    "gptj": (0, 1, 2, 0, None),
    "gpt_neo": (0, 0, 0, 0, None),
}
KINDS = ("planish.cached_attention", "planish.attention", "planish.rope", "planish.rms_norm")


@pytest.mark.parametrize("family", EXPECTED)
def test_unfused_or_fused_it_computes_what_the_model_does(family: str) -> None:
    outcome = fused(family)
    assert difference(outcome.program, decoder(family)[1]) < 1e-5
    *counts, refusal = EXPECTED[family]
    assert [outcome.program.count()[k] for k in KINDS] == counts
    assert refusal is None or any(refusal in r.reason for r in outcome.refused)


@pytest.mark.parametrize("family", ["bloom", "mpt", "gptj", "gpt_neo"])
def test_what_bypasses_the_hook_is_captured_with_plain_attention(family: str) -> None:
    captured, _ = decoder(family)
    assert "captured with plain attention" in captured.notes[0]
    assert captured.program.count()["planish.causal_mask"] == 0
