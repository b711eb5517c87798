"""Which files of a folder hold the weights, and which folders are refused with the way out."""

from __future__ import annotations

import json
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from planish.checkpoint import open_folder
from planish_passes.errors import PlanishError


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    for shard, names in {"model-1.safetensors": ("a", "b"), "model-2.safetensors": ("c",)}.items():
        save_file({name: torch.zeros(2) for name in names}, tmp_path / shard)
    write_index(tmp_path, {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"})
    return tmp_path


def write_index(folder: Path, shards: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def test_shards(sharded: Path) -> None:
    checkpoint = open_folder(sharded)
    assert sorted(checkpoint.keys()) == ["a", "b", "c"]
    assert checkpoint.where("c") == "model-2.safetensors"


def test_the_whole_file_goes_before_shards(sharded: Path) -> None:
    save_file({"x": torch.zeros(1)}, sharded / "model.safetensors")
    assert list(open_folder(sharded).keys()) == ["x"]


def test_missing_shard(sharded: Path) -> None:
    (sharded / "model-2.safetensors").unlink()
    with pytest.raises(PlanishError, match=r"1 of 2 weight shards are missing: model-2.safetensors") as caught:
        open_folder(sharded)
    assert caught.value.where == str(sharded)


def test_index_names_a_tensor_that_is_not_there(sharded: Path) -> None:
    write_index(sharded, {"a": "model-1.safetensors", "d": "model-2.safetensors"})
    with pytest.raises(PlanishError, match=r"says that d is in model-2.safetensors, but it is not"):
        open_folder(sharded)


def test_index_names_the_wrong_shard(sharded: Path) -> None:
    write_index(sharded, {"a": "model-2.safetensors", "b": "model-1.safetensors"})
    with pytest.raises(PlanishError, match=r"says that a is in model-2.safetensors"):
        open_folder(sharded)


def test_index_must_stay_in_its_folder(sharded: Path) -> None:
    write_index(sharded, {"a": "../model-1.safetensors"})
    with pytest.raises(PlanishError, match=r"points outside its folder"):
        open_folder(sharded)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_damaged_index(text: str, sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(PlanishError, match=r"index of the weight shards is not readable"):
        open_folder(sharded)


def test_file_named_by_the_config(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert list(open_folder(tmp_path, "other.safetensors").keys()) == ["x"]
    with pytest.raises(PlanishError, match=r"weights absent.safetensors are missing"):
        open_folder(tmp_path, "absent.safetensors")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "last.ckpt"])
def test_pickle_is_refused_unopened(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(PlanishError, match=rf"Python pickle \({name}\)") as caught:
        open_folder(tmp_path)
    assert "save_pretrained" in caught.value.hint


def test_real_pickle_checkpoint() -> None:
    inside = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"
    with pytest.raises(PlanishError, match=r"Python pickle \(pytorch_model.bin\)"):
        open_folder(Path(str(distribution("rxnmapper").locate_file(inside))))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("m.gguf", "give its own path"),
        ("adapter_model.safetensors", "merge it into its base model"),
        ("model_index.json", "diffusers"),
        ("consolidated.safetensors", "must be named model.safetensors"),
        ("notes.txt", "a folder that holds config.json"),
    ],
)
def test_other_contents(name: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(PlanishError, match=r"There is no model.safetensors") as caught:
        open_folder(tmp_path)
    assert hint in caught.value.hint
