"""Key/value caches as inputs and outputs of a traced call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    EncoderDecoderCache,
)

from planish.meta import fake_mode
from planish_passes.errors import PlanishError


@dataclass(frozen=True)
class LayerState:
    """What one layer keeps between calls: keys [B, heads, P, key_width] and values [B, heads, P, value_width]."""

    heads: int
    key_width: int
    value_width: int


@dataclass(frozen=True)
class PairState:
    """What an encoder-decoder model keeps: per layer, of its own tokens and of the encoder's `length` positions."""

    own: tuple[LayerState, ...]
    cross: tuple[LayerState, ...]
    length: int


class AppendLayer(CacheLayerMixin):
    """A cache layer that leaves one `planish::kv_append` per tensor in the trace."""

    is_sliding = False
    is_croppable = False

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.past = keys, values, keys.shape[-2]
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the state came in with the call."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Past and new together, for keys and for values."""
        assert self.keys is not None
        assert self.values is not None
        self.keys = torch.ops.planish.kv_append(self.keys, key_states)
        self.values = torch.ops.planish.kv_append(self.values, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length of the keys, and the place of the first one."""
        return self.past + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens that came in with the call."""
        return self.past

    def get_max_length(self) -> int:
        """No maximum."""
        return -1


class GivenLayer(AppendLayer):
    """Keys and values of an input that was read before; nothing is added."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """What was given."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values


class KeepLayer(AppendLayer):
    """Keys and values as they come, of one input that is read at once."""

    def __init__(self) -> None:
        super().__init__(torch.empty(0, 0), torch.empty(0, 0))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """What came."""
        self.keys, self.values = key_states, value_states
        return key_states, value_states


def append_cache(states: Sequence[Tensor]) -> Cache:
    """A cache over keys and values in turn, layer by layer."""
    return Cache(layers=[AppendLayer(k, v) for k, v in zip(states[::2], states[1::2], strict=True)])


def given_pair(own: Sequence[Tensor], cross: Sequence[Tensor]) -> EncoderDecoderCache:
    """A growing cache of a decoder's own tokens, and what it asks of the encoder, both as in `append_cache`."""
    read = Cache(layers=[GivenLayer(k, v) for k, v in zip(cross[::2], cross[1::2], strict=True)])
    pair = EncoderDecoderCache(append_cache(own), DynamicCache())
    pair.cross_attention_cache = read
    pair.is_updated = dict.fromkeys(range(len(read.layers)), True)
    return pair


def empty_pair() -> EncoderDecoderCache:
    """The cache of an encoder-decoder model before its first token."""
    return EncoderDecoderCache(DynamicCache(), Cache(layer_class_to_replicate=KeepLayer))


def probe_pair(model: nn.Module, inputs: Mapping[str, Tensor]) -> PairState:
    """Run an encoder-decoder model (`build_without_weights`) once and see what its caches hold.

    Raises:
        PlanishError: a layer keeps something else than keys and values.
    """
    pair = empty_pair()
    with _unchanged(model), torch.no_grad(), fake_mode(model):
        model(**inputs, decoder_input_ids=torch.zeros((1, 3), dtype=torch.int64), past_key_values=pair, use_cache=True)
    own, cross = (
        tuple(_state(model, layer, number) for number, layer in enumerate(cache.layers))
        for cache in (pair.self_attention_cache, pair.cross_attention_cache)
    )
    if not own or len(own) != len(cross):
        raise _refused(model, 0, "other caches than one pair per layer")
    keys = pair.cross_attention_cache.layers[0].keys
    assert keys is not None
    return PairState(own, cross, int(keys.shape[2]))


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """What calls leave behind in a module belongs to them alone."""
    before = [(module, dict(module.__dict__), dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes, buffers in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)


def probe(model: nn.Module, config: Any) -> tuple[LayerState, ...]:
    """Run the model (`build_without_weights`) once and see what its cache holds.

    Raises:
        PlanishError: a layer keeps something else than keys and values.
    """
    empty = DynamicCache(config=config)
    for number, layer in enumerate(empty.layers):
        if not isinstance(layer, DynamicLayer) or hasattr(layer, "conv_states"):
            raise _refused(model, number, type(layer).__name__)
    with _unchanged(model), torch.no_grad(), fake_mode(model):
        ids = torch.zeros((1, 3), dtype=torch.int64)
        result = model(input_ids=ids, past_key_values=empty, use_cache=True)
    layers = getattr(getattr(result, "past_key_values", None), "layers", None)
    if not layers:
        raise PlanishError(
            f"{type(model).__name__} does not keep keys and values",
            "its cache",
            "models without a cache, or with another state (recurrent, convolutional), are not supported yet",
        )
    return tuple(_state(model, layer, number) for number, layer in enumerate(layers))


def _refused(model: nn.Module, number: int, kept: str) -> PlanishError:
    return PlanishError(
        f"layer {number} of {type(model).__name__} keeps {kept}, not keys and values alone",
        "its cache",
        "hybrid and recurrent models are not supported yet",
    )


def _state(model: nn.Module, layer: Any, number: int) -> LayerState:
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    other = [n for n in ("conv_states", "recurrent_states", "indexer_keys") if getattr(layer, n, None) is not None]
    if other or not isinstance(keys, Tensor) or not isinstance(values, Tensor):
        raise _refused(model, number, " and ".join(other) or type(layer).__name__)
    return LayerState(int(keys.shape[1]), int(keys.shape[3]), int(values.shape[3]))
