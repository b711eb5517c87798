"""Loaders as files: in every bundle, the same for equal ones, nothing of a bundle is ever code."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

import pytest
from shipping import Shipped
from typer.testing import CliRunner

from planish.bundle import open_bundle
from planish.cli.app import app
from planish.compiled import Silent
from planish.loaders import LANGUAGES, loaders, write_loaders
from planish.loaders.contract import contract
from planish.loaders.render import plain, quote
from planish.verify import Ask, verify_bundle
from planish_passes.errors import PlanishError

NASTY = 'a"; exit(1); // \\ ${x} \n\r\t */ """ \u202e 🙂 ??/ \u0000 \u2028'


def test_a_bundle_has_them_and_its_signature_covers_them(encoder: Shipped) -> None:
    bundle = open_bundle(encoder.bundle)
    assert bundle.check_hashes() == []
    inside = {name.removeprefix("loaders/") for name in bundle.manifest.files if name.startswith("loaders/")}
    assert inside == set(loaders(bundle))
    assert {name.split("/")[0] for name in inside} == set(LANGUAGES)


def test_equal_bundles_have_equal_files(encoder: Shipped) -> None:
    bundle = open_bundle(encoder.bundle)
    for name, data in loaders(bundle).items():
        assert (encoder.loaders / name).read_bytes() == data, name


def test_what_the_model_says(encoder: Shipped, classifier: Shipped, writer: Shipped) -> None:
    told = contract(open_bundle(encoder.bundle))
    assert told.text is not None
    assert (told.text.prefix, told.text.suffix, told.text.pad) == ((101,), (102,), 0)
    assert {t.name: t.longest for t in told.targets} == {"onnxruntime": 100, "directml": 48, "executorch": 48}
    assert told.pooling is not None
    assert (told.pooling.mode, told.pooling.normalize, told.pooling.told) == ("mean", True, True)
    assert contract(open_bundle(classifier.bundle)).labels is not None
    written = contract(open_bundle(writer.bundle))
    assert written.stop == (1,)
    assert written.text is not None
    assert written.text.prefix == (0,)
    assert written.text.chat == ("<|user|>", "<|bot|>")
    assert [len(t.writing.states) for t in written.targets if t.writing] == [4, 0]


def test_the_shipped_tokenizer_is_read_alike(writer: Shipped, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planish.verify.tokenizer.hard_texts", lambda special: ["plain", "🙂 é", *special])
    ask = Ask(tokenizer=True, run=False)
    report = verify_bundle(writer.bundle, targets=None, runner={}, threads=1, timeout=60, progress=Silent(), ask=ask)
    assert [v.check for v in report.verdicts] == ["hashes", "tokenizer"]
    assert "tokenizer" in {v.check for t in report.targets for v in t.verdicts}
    assert report.failed == ()


@pytest.mark.parametrize("language", LANGUAGES)
def test_strings_are_ascii_and_closed(language: str) -> None:
    made = quote(language, NASTY)
    assert made.isascii()
    assert made.isprintable()
    inside = made[1:-1]
    assert all(inside[i - 1] == "\\" for i, char in enumerate(inside) if char == '"')
    if language == "python":
        assert ast.literal_eval(made) == NASTY
    if language == "csharp":
        assert json.loads(made) == NASTY


def test_comments_stay_one_line() -> None:
    assert plain(NASTY).isascii()
    assert not set('\n\r"\\*$`') & set(plain(NASTY))


def test_the_command_leaves_the_bundle_alone(encoder: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = hashlib.sha256((encoder.bundle / "manifest.json").read_bytes()).hexdigest()
    done = CliRunner().invoke(app, ["loaders", str(encoder.bundle), "--lang", "python", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    written = {p.relative_to(told["output"]).as_posix() for p in Path(told["output"]).rglob("*") if p.is_file()}
    assert written == set(told["files"])
    assert all(name.startswith("python/") for name in written)
    assert hashlib.sha256((encoder.bundle / "manifest.json").read_bytes()).hexdigest() == before
    assert open_bundle(encoder.bundle).check_hashes() == []


@pytest.mark.parametrize(
    ("languages", "into", "word"),
    [
        (["cobol"], "new", "no loader in 'cobol'"),
        (None, "full", "already something"),
        (None, "app.planish/mine", "stays as it was"),
    ],
)
def test_what_cannot_be_written(
    encoder: Shipped, tmp_path: Path, languages: list[str] | None, into: str, word: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("x")
    at = encoder.bundle.parent / into if into.startswith("app") else tmp_path / into
    with pytest.raises(PlanishError, match=word):
        write_loaders(open_bundle(encoder.bundle), at, languages)
    assert not (encoder.bundle / "mine").exists()
    assert sorted(p.name for p in (tmp_path / "full").iterdir()) == ["mine.txt"]
