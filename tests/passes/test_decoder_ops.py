import pytest
import torch
from torch import Tensor

import planish_passes.decoder_ops as ops


def plain(
    q: Tensor, k: Tensor, v: Tensor, slots: Tensor, *, window: int = 0, chunk: int = 0, softcap: float = 0,
    sinks: Tensor | None = None, scale: float = 0.5,
) -> Tensor:  # fmt: skip
    """Causal attention of one text, token by token, key by key."""
    batch, heads, length, _ = q.shape
    out = torch.zeros(batch, length, heads, v.shape[-1])
    for b in range(batch):
        for h in range(heads):
            group = h // (heads // k.shape[1])
            for i in range(length):
                at = int(slots[b, i])
                low = max(0, at - window + 1) if window else 0
                low = max(low, at // chunk * chunk) if chunk else low
                scores = torch.stack([q[b, h, i] @ k[b, group, j] * scale for j in range(low, at + 1)])
                scores = softcap * torch.tanh(scores / softcap) if softcap else scores
                extra = [] if sinks is None else [sinks[h : h + 1]]
                weights = torch.softmax(torch.cat([scores, *extra]), dim=0)[: len(scores)]
                out[b, i, h] = sum(w * v[b, group, j] for w, j in zip(weights, range(low, at + 1), strict=True))
    return out


def given(new: int = 3, past: int = 6) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, new, 8), torch.randn(2, 2, new, 8), torch.randn(2, 2, new, 6)
    return q, k, v, torch.randn(2, 2, past, 8), torch.randn(2, 2, past, 6), torch.arange(past, past + new).expand(2, -1)


@pytest.mark.parametrize(
    "options",
    [{}, {"window": 3}, {"chunk": 4}, {"softcap": 0.3}, {"sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])}],
    ids=str,
)
@pytest.mark.parametrize(("new", "past"), [(3, 6), (5, 0), (1, 7)])
def test_cached_attention_is_what_it_says(options: dict[str, object], new: int, past: int) -> None:
    q, k, v, past_k, past_v, slots = given(new, past)
    numbers = {"softcap": 0.0, "window": 0, "chunk": 0, "sinks": None, **options}
    out, keys, values = torch.ops.planish.cached_attention(
        q, k, v, past_k, past_v, slots, None, numbers["sinks"], 0.5, numbers["softcap"], numbers["window"],
        numbers["chunk"],
    )  # fmt: skip
    assert torch.equal(keys, torch.cat([past_k, k], dim=2))
    assert torch.equal(values, torch.cat([past_v, v], dim=2))
    wanted = plain(q, keys, values, slots, **options)  # type: ignore[arg-type]
    assert torch.allclose(out, wanted, atol=1e-6)
    if options:
        assert not torch.allclose(out, plain(q, keys, values, slots), atol=1e-3) or past + new <= 3


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_turns_pairs_by_the_angle_of_their_position(interleaved: bool) -> None:
    torch.manual_seed(0)
    x, positions = torch.randn(2, 3, 4, 10), torch.tensor([[3, 4, 5, 6], [0, 1, 2, 3]])
    angles = torch.arange(9)[:, None] * torch.tensor([1.0, 0.1, 0.01, 0.001])
    found = ops.rope(x, positions, angles.cos(), angles.sin(), interleaved)
    for pair in range(4):
        a, b = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + 4)
        turned = (
            torch.complex(x[..., a], x[..., b]) * torch.polar(torch.ones(2, 4), angles[positions][..., pair])[:, None]
        )
        assert torch.allclose(torch.complex(found[..., a], found[..., b]), turned, atol=1e-6)
    assert torch.equal(found[..., 8:], x[..., 8:])


def test_rms_norm_is_torchs_own() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 8), torch.randn(8)
    for w in (weight, None):
        assert torch.allclose(ops.rms_norm(x, w, 1e-3), torch.nn.functional.rms_norm(x, (8,), w, 1e-3), atol=1e-6)


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_gated_is_activation_times_up(activation: str) -> None:
    gate, up = torch.randn(4, 6), torch.randn(4, 6)
    assert torch.equal(ops.gated(gate, up, activation), ops.ACTIVATIONS[activation](gate) * up)
