"""Attention and mask hooks for transformers: attention arrives in the graph as one operator, masks as few nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

import planish_passes.decoder_ops
import planish_passes.ops  # noqa: F401  (both register operators)
from planish.masks import understand

IMPLEMENTATION = "planish"

_slots: ContextVar[Tensor | None] = ContextVar("slots", default=None)


@contextmanager
def cache_slots(slots: Tensor) -> Iterator[None]:
    """While a call with a cache is traced: int64 [B, Q], the place of each new token in the cache."""
    token = _slots.set(slots)
    try:
        yield
    finally:
        _slots.reset(token)


# Keyword arguments of attention calls that change nothing in inference on one device; what a window hides is in the
# mask already. Boundaries of packed texts (cu_seq_lens_q), chosen keys (indices) and the like are not among them.
_HARMLESS = frozenset(
    [
        "dropout",
        "is_causal",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "num_items_in_batch",
        "return_dict",
        "deterministic",
        "sliding_window",
        "use_cache",
        "training",
        "layer_idx",
        "position_ids",
    ]
)


class Unhooked(Exception):
    """The model asks of attention what the hook does not carry: capture it with plain attention instead."""


def attention_hook(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """One `planish::attention` per call; query, key, value [B, heads, length, D], result [B, length, heads, D]."""
    unknown = [name for name, given in rest.items() if given is not None and name not in _HARMLESS]
    if unknown:
        raise Unhooked(f"{type(module).__name__} passes {', '.join(unknown)} to attention")
    if attention_mask is None and rest.get("is_causal", False):
        raise Unhooked(f"{type(module).__name__} asks for causal attention without a mask")
    mask, bias = attention_mask, position_bias
    if mask is not None and mask.dtype != torch.bool:
        mask, bias = None, mask if bias is None else mask + bias
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return torch.ops.planish.attention(query, key, value, mask, bias, s_aux, float(scale), float(softcap or 0)), None


def mask_hook(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Any] = bidirectional_mask_function,
    attention_mask: Tensor | None = None,
    **rest: Any,
) -> Tensor | None:
    """Padding alone stays [B, 1, 1, K], a causal mask over a cache is one `planish::causal_mask`; every other mask is
    built by transformers' own `sdpa_mask`."""
    if mask_function is bidirectional_mask_function:
        return None if attention_mask is None else attention_mask[:, None, None, :].to(torch.bool)
    slots = _slots.get()
    if slots is not None and attention_mask is None:
        causal = understand(mask_function)
        if causal is not None:
            mask: Tensor = torch.ops.planish.causal_mask(slots, kv_length, causal.window, causal.chunk)
            return mask
    rest = {**rest, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        mask_function=mask_function,
        attention_mask=attention_mask,
        **rest,
    )


def register() -> None:
    """Make `attn_implementation="planish"` known to transformers."""
    AttentionInterface.register(IMPLEMENTATION, attention_hook)
    AttentionMaskInterface.register(IMPLEMENTATION, mask_hook)
