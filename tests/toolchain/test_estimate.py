"""Estimates against what was measured, and the refusal of a disk that is too small."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from planish import estimate as module
from planish.estimate import Estimate, check_room, estimate
from planish_passes.errors import PlanishError
from planish_passes.weights import TensorSpec, WeightFormat

INT4 = WeightFormat(4, 32, symmetric=False)
LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}


class Shapes:
    """A checkpoint that knows shapes alone."""

    paths = ()

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        with torch.device("meta"):
            model = tf.AutoModelForCausalLM.from_config(config)
        tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
        self.specs = {n: TensorSpec(tuple(t.shape), dtype) for n, t in model.state_dict().items() if n not in tied}

    def keys(self) -> Any:
        return self.specs.keys()

    def spec(self, key: str) -> TensorSpec:
        return self.specs[key]


def llama(layers: int) -> tuple[Any, Any]:
    config = tf.LlamaConfig(num_hidden_layers=layers, **LLAMA)
    return Shapes(config, torch.bfloat16), config


def smollm() -> tuple[Any, Any]:
    config = tf.LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_attention_heads=9,
        num_key_value_heads=3,
        num_hidden_layers=30,
        vocab_size=49152,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    return Shapes(config, torch.float32), config


# Bytes of model.onnx.data, CPU seconds and peak resident bytes of onnxruntime compiles without checks, as measured.
WIDER = WeightFormat(4, 64, symmetric=False)
MEASURED = {
    "smollm2": (smollm, INT4, 88.4e6, 28.0, 0.64e9),
    "llama-8b-shape, 4 layers": (lambda: llama(4), INT4, 1307e6, 25.0, 0.69e9),
    "llama-8b-shape": (lambda: llama(32), WIDER, 4652e6, 119.0, 0.95e9),
}


@pytest.mark.parametrize("name", MEASURED)
def test_estimates_are_near_to_what_was_measured(name: str) -> None:
    make, format, size, seconds, memory = MEASURED[name]
    checkpoint, config = make()
    found = estimate(checkpoint, config, format, ["onnxruntime"], verify=False)
    assert found.artifacts["onnxruntime"] == pytest.approx(size, rel=0.1)
    assert 0.5 * seconds < found.seconds < 2 * seconds
    assert 0.67 * memory < found.memory < 1.5 * memory


def test_memory_does_not_grow_with_the_weights() -> None:
    small, large = (estimate(*llama(n), INT4, ["onnxruntime"], verify=False) for n in (4, 32))
    assert large.memory < 1.5 * small.memory
    assert large.artifacts["onnxruntime"] > 3.5 * small.artifacts["onnxruntime"]
    checked = estimate(*llama(32), INT4, ["onnxruntime"])
    assert checked.memory > 32e9  # the original runs as well


def test_everything_that_costs_counts() -> None:
    checkpoint, config = smollm()
    base = estimate(checkpoint, config, INT4, ["onnxruntime"])
    two = estimate(checkpoint, config, INT4, ["onnxruntime", "directml"])
    assert two.disk > base.disk
    assert two.seconds > base.seconds
    assert two.artifacts["directml"] < two.artifacts["onnxruntime"]  # scales of two bytes
    plain = estimate(checkpoint, config, None, ["onnxruntime"], verify=False)
    assert plain.scratch == 0
    assert estimate(checkpoint, config, None, ["onnxruntime"]).scratch == 400 * 49152 * 4  # what the original says
    assert plain.artifacts["onnxruntime"] == pytest.approx(538e6, rel=0.02)
    assert estimate(checkpoint, config, INT4, ["onnxruntime"], rounding="calibrated").seconds > base.seconds + 30


def test_a_disk_that_is_too_small_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = Estimate(10**9, 10**9, {"onnxruntime": 3 * 10**9}, 60)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed.disk - 1))
    with pytest.raises(PlanishError, match=r"about 4\.1 GB are needed, 4\.1 GB are free") as refused:
        check_room(needed, tmp_path / "not" / "there")
    assert refused.value.where == str(tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed.disk))
    monkeypatch.setattr(module, "_available_memory", lambda: 10**9)
    assert check_room(needed, tmp_path) == ()
    monkeypatch.setattr(module, "_available_memory", lambda: 10**9 - 1)
    (note,) = check_room(needed, tmp_path)
    assert "1.0 GB of memory are needed" in note


def test_an_estimate_is_one_sentence() -> None:
    text = str(Estimate(800_000_000, 0, {"onnxruntime": 87_000_000}, 20.4))
    assert text == "about 800 MB of memory, 151 MB of disk, 20 s of CPU time; artifacts: onnxruntime 87 MB"


def test_weights_that_are_kept_cost_what_they_have_in_the_file() -> None:
    checkpoint, config = smollm()
    matrices = [key for key in list(checkpoint.keys()) if len(checkpoint.spec(key).shape) == 2]
    kept = dict.fromkeys(matrices, (WeightFormat(4, 32), 2))
    found = estimate(checkpoint, config, None, ["onnxruntime"], kept=kept, verify=False)
    weights = sum(checkpoint.spec(key).nbytes // 4 for key in matrices)
    tables = 8192 * 64 * 4  # of rotary positions
    assert found.artifacts["onnxruntime"] == pytest.approx(weights * (4 + 64 / 32) / 8 + tables, rel=0.01)
    assert found.scratch == 0
