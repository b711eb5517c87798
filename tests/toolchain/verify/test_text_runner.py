"""ExecuTorch's own runner opens what a compile wrote, unmodified, and writes the same tokens; whatever spoils that is
named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from byte_tokenizer import save_tokenizer
from support import random_model
from transformers import AutoModelForCausalLM

from planish.build import compile_model
from planish.compiled import Silent, TargetResult
from planish.request import Request
from planish.verdict import Failed, NotRun, Passed, Verdict
from planish.verify import text_runner as verify
from planish.verify.lowering import Execution
from planish.verify.text_runner import SENTENCES, TOKENS, check_text_runner
from planish_targets import registry
from planish_targets.contract import Artifact
from planish_targets.executorch.pte import open_pte
from planish_targets.executorch.text_runner import fit
from planish_targets.text_runner import ask

pytest.importorskip("executorch")

END = 300
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    config = tf.LlamaConfig(num_key_value_heads=2, vocab_size=304, bos_token_id=296, eos_token_id=299, **SIZES)
    made: Any = random_model(config, AutoModelForCausalLM)
    with torch.no_grad():
        made.lm_head.weight[:256] *= 0.05  # words are likelier than single bytes
        made.lm_head.weight[296:] *= 0.05
    made.save_pretrained(folder)
    save_tokenizer(folder)
    told = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**told, "eos_token_id": [299, END]}))
    return folder


@pytest.fixture(scope="module")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> TargetResult:
    gates: Any = {"divergence": 10.0, "agreement": 0.0}
    request = Request(model=str(model), targets=("executorch",), recipe="int8", context=128, gates=gates)
    return compile_model(request, Silent(), tmp_path_factory.mktemp("work")).targets[0]


def copy(made: TargetResult, into: Path) -> Artifact:
    assert made.artifact is not None
    shutil.copytree(made.artifact.folder, into / "copy")
    return replace(made.artifact, folder=into / "copy")


def check(artifact: Artifact, model: Path, limit: float | None = None) -> Verdict:
    (verdict,) = check_text_runner(registry.find("executorch"), artifact, model, (299, END), Execution(), limit)
    return verdict


def value(verdict: Verdict, name: str) -> float:
    assert not isinstance(verdict, NotRun), verdict
    return next(m.value for m in verdict.metrics if m.name == name)


def test_the_bundle_is_read_unmodified(made: TargetResult) -> None:
    verdict = next(v for v in made.verdicts if v.check == "text_runner")
    assert isinstance(verdict, Passed), verdict
    assert value(verdict, "equal_sentences") == 1.0
    assert value(verdict, "equal_tokens") == TOKENS


def test_every_token_that_ends_a_text_is_in_the_file(made: TargetResult) -> None:
    assert made.artifact is not None
    program = open_pte(made.artifact.path).program
    ends = next(p for p in program.execution_plan if p.name == "get_eos_ids")
    assert [ends.values[i].val.int_val for i in ends.outputs] == [299, END]
    begin = next(p for p in program.execution_plan if p.name == "get_bos_id")
    assert [begin.values[i].val.int_val for i in begin.outputs] == [296]


def test_a_normaliser_that_loses_accents_is_taken_out(made: TargetResult, model: Path, tmp_path: Path) -> None:
    assert made.artifact is not None
    whole = copy(made, tmp_path)
    edit(whole, lambda told: told.update(normalizer={"type": "NFC"}))
    kept = next(v for v in made.verdicts if v.check == "text_runner")
    assert value(kept, "equal_odd_texts") > value(check(whole, model), "equal_odd_texts")
    assert json.loads((model / "tokenizer.json").read_text())["normalizer"] == {"type": "NFC"}
    assert json.loads((made.artifact.folder / "tokenizer.json").read_text())["normalizer"] is None
    assert any("NFC" in note for note in made.artifact.notes)


def edit(artifact: Artifact, change: Callable[[dict[str, Any]], None]) -> None:
    path = artifact.folder / "tokenizer.json"
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))


def test_other_tokens_are_seen_and_can_be_accepted(made: TargetResult, model: Path, tmp_path: Path) -> None:
    artifact = copy(made, tmp_path)
    edit(artifact, lambda told: told["model"]["merges"].clear())
    verdict = check(artifact, model)
    assert isinstance(verdict, Failed)
    assert "other tokens of 'The ferry leaves" in verdict.reason
    assert value(verdict, "equal_sentences") <= 1 - 1 / SENTENCES
    assert isinstance(check(artifact, model, limit=0.0), Passed)


def with_turned_weights(path: Path) -> bytes:
    """The bytes of a .pte whose weights of linears are stored backwards."""
    file, data = open_pte(path), bytearray(path.read_bytes())
    for entry in file.program.named_data:
        at = file.program.segments[entry.segment_index]
        if at.size >= 1024 and not entry.key.startswith("scale_"):
            span = slice(file.header.base + at.offset, file.header.base + at.offset + at.size)
            data[span] = data[span][::-1]
    return bytes(data)


def test_another_text_is_seen(made: TargetResult, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer is right, and the file that the app opens is another one."""
    artifact = copy(made, tmp_path)
    wrong = replace(artifact, entry="other.pte")
    wrong.path.write_bytes(with_turned_weights(artifact.path))
    monkeypatch.setattr(verify, "ask", lambda command, _, *rest, **how: ask(command, wrong, *rest, **how))
    verdict = check(artifact, model)
    assert isinstance(verdict, Failed)
    assert "it writes" in verdict.reason


def test_a_tokenizer_that_it_cannot_read_is_no_failure_of_the_artifact(
    made: TargetResult, model: Path, tmp_path: Path
) -> None:
    artifact = copy(made, tmp_path)
    edit(artifact, lambda told: told.update(pre_tokenizer={"type": "Metaspace", "replacement": "\u2581"}))
    verdict = check(artifact, model)
    assert isinstance(verdict, NotRun)
    assert "Unsupported PreTokenizer type: Metaspace" in verdict.reason


def test_a_broken_artifact_is_a_reason_and_no_crash(made: TargetResult, model: Path, tmp_path: Path) -> None:
    artifact = copy(made, tmp_path)
    artifact.path.write_bytes(artifact.path.read_bytes()[:-100])
    verdict = check(artifact, model)
    assert isinstance(verdict, Failed)
    assert "is cut off" in verdict.reason


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"type": "NFC"}, None),
        ({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}, [{"type": "Lowercase"}]),
        ({"type": "Sequence", "normalizers": [{"type": "NFC"}]}, None),
    ],
)
def test_nfc_alone_is_taken_out(before: Any, after: Any, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"normalizer": before, "model": {"vocab": {"é": 1}}}))
    assert len(fit(tmp_path)) == 1
    told = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    assert told["model"] == {"vocab": {"é": 1}}
    assert told["normalizer"] == (after and {"type": "Sequence", "normalizers": after})
    assert fit(tmp_path) == ()
