from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import masking_utils as mu

from planish.masks import Causal, understand


def by_distance(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """A sliding window in nobody's spelling."""
    return ((query - key) >= 0) & ((query - key) < 5)


@pytest.mark.parametrize(
    ("function", "meaning"),
    [
        (mu.causal_mask_function, Causal()),
        (mu.sliding_window_causal_mask_function(8), Causal(window=8)),
        (mu.sliding_window_causal_mask_function(1), Causal(window=1)),
        (mu.chunked_causal_mask_function(8, torch.zeros(1, dtype=torch.int64)), Causal(chunk=8)),
        (by_distance, Causal(window=5)),
    ],
)
def test_causal_masks_are_understood(function: Callable[..., Any], meaning: Causal) -> None:
    assert understand(function) == meaning


@pytest.mark.parametrize(
    "function",
    [
        mu.bidirectional_mask_function,
        mu.sliding_window_bidirectional_mask_function(8),
        mu.and_masks(mu.causal_mask_function, mu.padding_mask_function(torch.ones(1, 4, dtype=torch.bool))),
        mu.and_masks(mu.causal_mask_function, mu.packed_sequence_mask_function(torch.zeros(1, 4, dtype=torch.int64))),
        mu.or_masks(mu.causal_mask_function, lambda b, h, q, k: k < 3),
        mu.and_masks(mu.causal_mask_function, lambda b, h, q, k: k % 2 == 0),
        lambda b, h, q, k: k < q,
        lambda b, h, q, k: (q - k).to(torch.float32),
    ],
    ids=["all", "window both ways", "padding", "packed", "prefix", "every other", "not itself", "no booleans"],
)
def test_other_masks_are_not(function: Callable[..., Any]) -> None:
    assert understand(function) is None


def test_a_window_that_only_begins_far_away_is_not_taken_for_none() -> None:
    assert understand(mu.sliding_window_causal_mask_function(100_000)) == Causal(window=100_000)


def test_values_that_exist_only_while_tracing_are_not_asked_for() -> None:
    with FakeTensorMode():
        padding = torch.ones(1, 4, dtype=torch.bool)
        chunked = mu.chunked_causal_mask_function(8, torch.zeros(2, dtype=torch.int64))
        assert understand(mu.and_masks(mu.causal_mask_function, mu.padding_mask_function(padding))) is None
        assert understand(chunked) == Causal(chunk=8)  # without a padding mask there is none on the left


def test_the_operator_hides_what_the_mask_function_hides() -> None:
    for causal in (Causal(), Causal(window=3), Causal(chunk=4)):
        found = torch.ops.planish.causal_mask(torch.arange(9)[None], 9, causal.window, causal.chunk)
        rows, columns = torch.arange(9)[:, None], torch.arange(9)[None]
        assert torch.equal(found[0, 0], causal.allows(rows, columns))
