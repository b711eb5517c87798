import pytest
import torch

import planish_passes.decoder_ops
import planish_passes.palette  # noqa: F401  (both register operators)
from planish_passes import ops


def test_attention_is_torchs_own() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 8, 5, 16), torch.randn(2, 2, 7, 16), torch.randn(2, 2, 7, 16)
    mask = torch.rand(2, 1, 5, 7) > 0.3
    mask[..., 0] = True
    found = torch.ops.planish.attention(q, k, v, mask, None, None, 0.25, 0.0)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    expected = sdpa(q, k, v, attn_mask=mask, scale=0.25, enable_gqa=True).transpose(1, 2)
    assert torch.allclose(found, expected, atol=1e-6)


def test_sinks_take_probability_and_softcap_bounds_scores() -> None:
    q = k = v = torch.ones(1, 1, 2, 4)
    sunk = torch.ops.planish.attention(q, k, v, None, None, torch.zeros(1), 0.0, 0.0)
    assert torch.allclose(sunk, torch.full_like(sunk, 2 / 3))
    capped = ops.attention(q * 100, k, torch.randn(1, 1, 2, 4), None, None, None, 1.0, 1e-6)
    assert torch.isfinite(capped).all()


@pytest.mark.parametrize("op", list(ops.BODIES))
def test_every_operator_has_a_fake_that_agrees_with_its_body(op: torch._ops.OpOverload) -> None:
    q = torch.randn(2, 4, 3, 8)
    weight, scales = torch.randint(-8, 8, (6, 8), dtype=torch.int8), torch.rand(6, 2)
    codes = torch.randint(0, 4, (6, 8), dtype=torch.uint8)
    arguments = {
        "attention": (q, q, q, None, None, None, 1.0, 0.0),
        "linear_q": (torch.randn(3, 8), weight, scales, None, torch.randn(6), 8, "none"),
        "embedding_q": (torch.randint(0, 6, (2, 3)), weight, scales, torch.zeros(6, 2, dtype=torch.int8), 8),
        "linear_minima": (torch.randn(3, 8), torch.randn(6, 2)),
        "embedding_minima": (torch.randint(0, 6, (2, 3)), torch.randn(6, 2), 8),
        "linear_lut": (torch.randn(3, 8), codes, torch.randn(2, 4), None),
        "kv_append": (q, q),
        "cache_write": (q[:1], q[:1, :, :2], torch.arange(2)[None]),
        "resident_attention": (*[q[:1]] * 5, torch.arange(3)[None], None, None, 1.0, 0.0, 0, 0),
        "causal_mask": (torch.arange(3).expand(2, -1), 7, 2, 4),
        "cached_attention": (q, q, q, q, q, torch.arange(3, 6).expand(2, -1), None, None, 1.0, 0.0, 0, 0),
        "rope": (q, torch.arange(3).expand(2, -1), torch.rand(5, 3), torch.rand(5, 3), False),
        "rms_norm": (q, torch.rand(8), 1e-6),
        "gated": (q, q, "silu"),
    }[op._schema.name.split("::")[1]]
    torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


def test_minima_are_a_part_of_the_weight() -> None:
    x, minima = torch.randn(2, 3, 8), torch.randn(6, 2)
    repeated = minima.repeat_interleave(4, dim=1)
    found = torch.ops.planish.linear_minima(x, minima)
    assert torch.allclose(found, torch.nn.functional.linear(x, repeated), rtol=0, atol=1e-5)
    ids = torch.randint(0, 6, (2, 3))
    assert torch.equal(torch.ops.planish.embedding_minima(ids, minima, 8), repeated[ids])
