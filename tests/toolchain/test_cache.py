import pytest
import torch
import transformers as tf
from decoders import DECODERS
from transformers import AutoModelForCausalLM

from planish import hooks
from planish.cache import LayerState, append_cache, probe
from planish.meta import build_without_weights
from planish_passes.errors import PlanishError


def test_probing_finds_heads_and_widths_and_leaves_the_model_alone() -> None:
    config = DECODERS["llama"]()
    model = build_without_weights(AutoModelForCausalLM, config, hooks.IMPLEMENTATION)
    before = [dict(m.__dict__) for m in model.modules()]
    assert probe(model, config) == (LayerState(2, 8, 8), LayerState(2, 8, 8))
    assert [m.__dict__.keys() for m in model.modules()] == [b.keys() for b in before]


def test_a_compressed_cache_has_another_width_for_values() -> None:
    config = DECODERS["deepseek_v3"]()
    model = build_without_weights(AutoModelForCausalLM, config, hooks.IMPLEMENTATION)
    layer = probe(model, config)[0]
    assert layer.key_width != layer.value_width


def test_layers_append_and_count() -> None:
    past = [torch.randn(1, 2, 3, 4) for _ in range(4)]
    cache, new = append_cache(past), torch.randn(1, 2, 5, 4)
    keys, values = cache.update(new, new + 1, 1)
    assert torch.equal(keys, torch.cat([past[2], new], dim=2))
    assert torch.equal(values, torch.cat([past[3], new + 1], dim=2))
    assert cache.get_seq_length(0) == 3
    assert cache.get_mask_sizes(5, 0) == (8, 0)


def test_a_layer_that_keeps_more_is_refused() -> None:
    config = tf.Lfm2Config(
        layer_types=["conv", "full_attention"], vocab_size=64, hidden_size=32, intermediate_size=32,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    model = build_without_weights(AutoModelForCausalLM, config, hooks.IMPLEMENTATION)
    with pytest.raises(PlanishError, match="layer 0 of Lfm2ForCausalLM keeps LinearAttentionLayer"):
        probe(model, config)
