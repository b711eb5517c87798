"""planish eval: numbers against the model in torch, and what cannot be measured."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from decoders import DECODERS
from support import random_model

from planish_targets import registry
from planish_targets.contract import Evidence, Runner

TEXT = " ".join(f"w{(i * 37 + i * i) % 124}" for i in range(60))


@pytest.fixture(autouse=True)
def targets() -> dict[str, Any]:
    """The real ones, not the fakes of conftest.py."""
    return dict(registry.targets())


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_against_torch(run: Any, tiny: Any, text: Path) -> None:
    result = run("eval", tiny.bundle, "--text", text, "--tokens", 24, "--model", tiny.model, "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["text"] == {"name": str(text), "sha256": hashlib.sha256(TEXT.encode()).hexdigest(), "tokens": 24}
    ids = tf.AutoTokenizer.from_pretrained(tiny.model)(TEXT, return_tensors="pt")["input_ids"][:, :24]
    with torch.no_grad():
        loss = float(tf.AutoModelForCausalLM.from_pretrained(tiny.model)(input_ids=ids, labels=ids).loss)
    row = data["targets"][0]
    assert (row["target"], row["evidence"]) == ("onnxruntime", "executed")
    assert row["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert data["original"]["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert abs(row["kl_max"]) < 1e-6
    assert row["agreement"] == 1.0


def test_another_model_is_far(run: Any, tiny: Any, text: Path, tmp_path: Path) -> None:
    random_model(DECODERS["llama"](), tf.AutoModelForCausalLM, seed=5).save_pretrained(tmp_path / "other")
    result = run("eval", tiny.bundle, "--text", text, "--tokens", 8, "--model", tmp_path / "other", "--json")
    row = json.loads(result.stdout)["targets"][0]
    assert row["kl_mean"] > 0.01
    assert row["agreement"] < 1.0


def test_another_vocabulary(run: Any, tiny: Any, text: Path, told: Any, tmp_path: Path) -> None:
    config = DECODERS["llama"]()
    config.vocab_size = 160
    random_model(config, tf.AutoModelForCausalLM).save_pretrained(tmp_path / "other")
    result = run("eval", tiny.bundle, "--text", text, "--tokens", 4, "--model", tmp_path / "other")
    assert told(result)[0] == "The original has 160 tokens in its vocabulary, the bundle 128."


def test_the_text_that_python_brings(run: Any, tiny: Any) -> None:
    result = run("eval", tiny.bundle, "--tokens", 5)
    assert result.exit_code == 0, result.stderr
    assert "5 tokens of pydoc_data.topics, sha256 " in result.stdout
    row = next(line for line in result.stdout.splitlines() if line.startswith("onnxruntime"))
    assert row.split()[1] == "executed"
    assert float(row.split()[2]) > 1


def test_texts_that_do_not_fit(run: Any, tiny: Any, text: Path, told: Any) -> None:
    text.write_text("w1")
    assert told(run("eval", tiny.bundle, "--text", text))[0].startswith("The text has less than two tokens")
    assert told(run("eval", tiny.bundle, "--text", "nowhere"))[0].startswith("The text cannot be read")
    text.write_text("w1 " * 400)
    result = run("eval", tiny.bundle, "--text", text, "--tokens", 300)
    assert told(result)[2] == "--tokens 256"


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_a_crash(run: Any, tiny: Any, told: Any, targets: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    command = (sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGABRT)")
    made = Runner(command, Evidence.EXECUTED, "Fake")
    monkeypatch.setattr(type(targets["onnxruntime"]), "runner", lambda self, artifact: made)
    result = run("eval", tiny.bundle, "--tokens", 4)
    assert (result.exit_code, told(result)[0]) == (1, "The runtime crashed with SIGABRT.")
