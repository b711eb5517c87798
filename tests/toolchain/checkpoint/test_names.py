"""Names alone: renaming, prefixes, groups, and what is left over. (Values: test_store.py.)"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers.core_model_loading import WeightRenaming

from planish.checkpoint.names import NamePlan, plan_names

tf: Any = transformers
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 40,
    "max_position_embeddings": 32,
}


def plan(model: str, config: Any, keys: list[str], mapping: list[Any] | None = None) -> NamePlan:
    with torch.device("meta"):
        return plan_names(getattr(tf, model)(config), keys, mapping)


def test_prefix_is_added_and_removed() -> None:
    config = tf.BertConfig(**SMALL)
    bias = "encoder.layer.0.output.dense.bias"
    assert plan("BertForMaskedLM", config, [bias]).direct == {f"bert.{bias}": bias}
    assert plan("BertModel", config, [f"bert.{bias}"]).direct == {bias: f"bert.{bias}"}


def test_left_over_and_doubled_keys() -> None:
    keys = ["pooler.dense.bias", "bert.pooler.dense.bias", "head.weight"]
    found = plan("BertModel", tf.BertConfig(**SMALL), keys)
    assert found.direct == {"pooler.dense.bias": "bert.pooler.dense.bias"}
    assert found.shadowed == ("pooler.dense.bias",)
    assert found.unexpected == ("head.weight",)


def test_a_key_that_needs_no_renaming_keeps_its_name() -> None:
    rules = [WeightRenaming(r"^classifier\.", "head.")]
    found = plan("BertForSequenceClassification", tf.BertConfig(**SMALL), ["classifier.bias"], rules)
    assert found.direct == {"classifier.bias": "classifier.bias"}


def test_experts_are_grouped_in_numeric_order() -> None:
    config = tf.MixtralConfig(**SMALL, num_key_value_heads=1, num_local_experts=11)
    keys = [f"model.layers.0.block_sparse_moe.experts.{i}.w2.weight" for i in range(11)]
    with torch.device("meta"):
        model = tf.MixtralForCausalLM(config)
    (group,) = plan_names(model, sorted(keys)).conversions
    assert group.first == "model.layers.0.mlp.experts.down_proj"
    assert list(group.keys) == keys
    assert group.operations == "MergeModulelist"
    made = group.run(lambda key: torch.full((16, 24), float(keys.index(key))), model)
    assert made[group.first][:, 0, 0].tolist() == list(range(11))
