"""Smaller configs that fail in the same way, whatever the model class calls its sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planish.failures import shrink
from planish.failures.attempt import fails
from planish.failures.config import plain_config
from planish.failures.record import Finding, Model, Record
from planish.failures.reduce import Reduced, reduce
from planish.failures.sign import REFUSED, Sign, of_finding

LLAMA = {
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 50000,
    "eos_token_id": 49999,
    "tie_word_embeddings": True,
    "layer_types": ["full_attention"] * 16,
}
FINDING = Finding(kind="PlanishError", what="no form for 'x' in layer 7", op="aten.erf", target="coreml")
SIGN = of_finding(FINDING)


def record(**values: Any) -> Record:
    found: dict[str, Any] = {
        "ended": "failed",
        "began": "now",
        "output": "/x/m.planish",
        "request": {"model": "m", "targets": ["onnxruntime", "coreml"], "recipe": "int8", "threads": 1},
        "findings": (FINDING,),
        "model": Model(task="fill-mask", architecture="M", config=LLAMA),
    }
    return Record(**{**found, **values})


def test_layers_widths_and_words() -> None:
    made = shrink.narrow(shrink.shallow(LLAMA), 64)
    assert made == {
        **LLAMA,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "vocab_size": 781,
        "eos_token_id": 49999 % 781,
        "layer_types": ["full_attention"],
    }


def test_configs_inside_of_configs_and_lists() -> None:
    config = {"vision_config": {"depths": [3, 9], "hidden_sizes": [64, 128], "flag": True}, "image_token_index": 77}
    made = shrink.narrow(shrink.shallow(config), 16)
    assert made == {"vision_config": {"depths": [1, 1], "hidden_sizes": [4, 8], "flag": True}, "image_token_index": 77}


def test_the_smallest_that_still_shows_it() -> None:
    def attempt(config: Mapping[str, Any], task: str, request: Mapping[str, Any], seconds: float) -> tuple[Sign, ...]:
        assert request["targets"] == ["coreml"]
        fits = config["hidden_size"] % config["num_attention_heads"] == 0
        return (SIGN,) if fits and config["hidden_size"] >= 8 and config["vocab_size"] >= 3 else (("gate", "x", "y"),)

    found = reduce(record(), attempt, 60, lambda line: None)
    assert isinstance(found, Reduced)
    assert found.complete
    assert {k: v for k, v in found.config.items() if isinstance(v, int) and not isinstance(v, bool)} == {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "vocab_size": 3,
        "eos_token_id": found.config["eos_token_id"],
    }
    assert found.config["eos_token_id"] < 3
    assert found.request == {"targets": ["coreml"], "verify": False}


def test_what_does_not_come_from_the_graph_is_not_searched_for() -> None:
    def never(*_: Any) -> tuple[Sign, ...]:
        raise AssertionError

    assert "does not come from" in str(reduce(record(ended="out of memory"), never, 60, print))
    assert "its own code" in str(reduce(record(request={"trust_remote_code": True}), never, 60, print))


def test_a_failure_of_the_weights_is_said_to_be_one() -> None:
    tries: list[str] = []
    told = reduce(record(), lambda *_: (), 60, tries.append)
    assert told == "no random model of this class shows it: it depends on the model's own weights or size"
    assert tries[-1] == "all layers, widths / 1: not this failure"
    assert "--time" in str(reduce(record(), lambda *_: (), 0, tries.append))


def test_configs_that_the_class_refuses_are_counted_and_told() -> None:
    said: list[str] = []

    def attempt(config: Mapping[str, Any], *_: Any) -> tuple[Sign, ...]:
        return (SIGN,) if config["hidden_size"] >= 64 else ((REFUSED, "ValueError: too narrow"),)

    found = reduce(record(), attempt, 60, said.append)
    assert isinstance(found, Reduced)
    assert found.config["hidden_size"] == 64
    told = [line for line in said if line.endswith("the model's class refuses it (ValueError: too narrow)")]
    assert 0 < found.refused == len(told) < found.tries
    never = reduce(record(), lambda *_: ((REFUSED, "ValueError: no"),), 60, said.append)
    assert never == "no random model of this config can be made, large or small: ValueError: no"
    some = iter([()])
    mixed = str(reduce(record(), lambda *_: next(some, ((REFUSED, "ValueError: no"),)), 60, said.append))
    assert "configs were refused by the class: ValueError: no" in mixed


def test_no_sdk_talks_while_the_tries_are_prepared() -> None:
    done = subprocess.run([sys.executable, "-m", "planish.failures.warm"], capture_output=True, check=True, timeout=120)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_the_same_failure_in_another_layer() -> None:
    other = FINDING.model_copy(update={"what": "no form for 'y' in layer 0"})
    assert of_finding(other) == SIGN
    assert of_finding(other.model_copy(update={"op": "aten.tanh"})) != SIGN


def test_a_real_compile_of_a_random_model(tmp_path: Path) -> None:
    import transformers as tf

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = tf.BertConfig(vocab_size=30, id2label={0: "secret", 1: "b", 2: "c"}, **sizes)
    plain = plain_config(config)
    assert "secret" not in json.dumps(plain)
    (tmp_path / "config.json").write_text(json.dumps(plain))
    request = {"targets": ["executorch"], "dynamic": True, "verify": False}
    (sign,) = fails(tmp_path, "feature-extraction", request)
    assert sign == ("stopped", "PlanishError", "executorch takes fixed shapes only", "", "")
    (tmp_path / "config.json").write_text(json.dumps({**plain, "num_attention_heads": 3}))
    ((kind, reason),) = fails(tmp_path, "feature-extraction", request)
    assert kind == REFUSED
    assert "16" in reason  # is no multiple of 3
