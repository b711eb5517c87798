"""Find the weights in a model folder: safetensors, whole or in shards. Everything else is refused with the way out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from planish.checkpoint.safetensors import AGAIN, SafetensorsCheckpoint
from planish_passes.errors import PlanishError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Python pickles can run any code when they are opened; these names hold weights in practice.
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "pytorch_model.bin.index.json")
_OTHERS = {
    "*.gguf": "a GGUF file is there: give its own path instead of the folder",
    "adapter_model.*": "this is an adapter, not a model: merge it into its base model and save that",
    "model_index.json": "this is a diffusers pipeline: give one of its sub-folders",
    "tf_model.h5": "only TensorFlow weights are there: convert them to safetensors with an older transformers",
    "flax_model.msgpack": "only Flax weights are there: convert them to safetensors with an older transformers",
    "*.onnx": "only an ONNX file is there: planish starts from the original PyTorch weights",
    "*.safetensors": f"the weights must be named {SINGLE}, or {INDEX} must list the shards",
}


def open_folder(folder: Path, named: str | None = None) -> SafetensorsCheckpoint:
    """Open the weights of a model folder; headers are read and checked, data is not.

    Args:
        folder: holds the weight files.
        named: the file that config.json names (`transformers_weights`), if it does.

    Raises:
        PlanishError: no weights, only pickles, a missing or damaged shard.
    """
    for name in (named,) if named is not None else (SINGLE, INDEX):
        if (folder / name).is_file():
            sharded = name.endswith(".index.json")
            return _open_shards(folder, name) if sharded else SafetensorsCheckpoint([folder / name])
    if named is not None:
        raise PlanishError(f"The weights {named} are missing.", str(folder), "config.json names them: download them")
    raise no_weights(str(folder), sorted(p.name for p in folder.iterdir()))


def no_weights(where: str, names: Sequence[str]) -> PlanishError:
    """The refusal of a folder or repository whose file names hold no safetensors weights."""
    pickles = [n for n in names if any(Path(n).match(p) for p in _PICKLES)]
    if pickles:
        return PlanishError(
            f"The weights are a Python pickle ({pickles[0]}), which can run code when opened.",
            where,
            "if you trust its origin, convert it once: "
            "AutoModel….from_pretrained(FOLDER).save_pretrained(NEW_FOLDER) writes safetensors; "
            "on the hub, https://huggingface.co/spaces/safetensors/convert",
        )
    for pattern, hint in _OTHERS.items():
        if any(Path(n).match(pattern) for n in names):
            return PlanishError(f"There is no {SINGLE}.", where, hint)
    return PlanishError(f"There is no {SINGLE}.", where, "give a folder that holds config.json and the weights")


def _open_shards(folder: Path, name: str) -> SafetensorsCheckpoint:
    index = folder / name
    try:
        table = json.loads(index.read_text("utf-8"))["weight_map"]
        listed = {str(key): str(shard) for key, shard in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlanishError("The index of the weight shards is not readable.", str(index), AGAIN) from error
    shards = sorted(set(listed.values()))
    if stray := [s for s in shards if Path(s).name != s or "\\" in s]:
        fault = f"The index points outside its folder: {stray[0]}."
        raise PlanishError(fault, str(index), "do not trust this checkpoint")
    if missing := [s for s in shards if not (folder / s).is_file()]:
        raise PlanishError(
            f"{len(missing)} of {len(shards)} weight shards are missing: {', '.join(missing[:5])}.",
            str(folder),
            "download them",
        )
    held = SafetensorsCheckpoint([folder / s for s in shards])
    keys = set(held.keys())
    for key, shard in listed.items():
        if key not in keys or held.where(key) != shard:
            raise PlanishError(f"The index says that {key} is in {shard}, but it is not.", str(index), AGAIN)
    return held
