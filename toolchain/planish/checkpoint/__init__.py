"""Checkpoints on disk as lazy weights: safetensors (mapped) and GGUF (unpacked tensor by tensor)."""

from __future__ import annotations

from planish.checkpoint.blocks import Blocks
from planish.checkpoint.finite import AbsentWeightError, check_finite
from planish.checkpoint.folder import open_folder
from planish.checkpoint.gguf import GgufFile, name_tensors
from planish.checkpoint.mapped import Checkpoint
from planish.checkpoint.safetensors import SafetensorsCheckpoint
from planish.checkpoint.store import Loaded, load_weights

__all__ = [
    "AbsentWeightError",
    "Blocks",
    "Checkpoint",
    "GgufFile",
    "Loaded",
    "SafetensorsCheckpoint",
    "check_finite",
    "load_weights",
    "name_tensors",
    "open_folder",
]
