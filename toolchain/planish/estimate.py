"""What a compile will take: memory, disk, time, size of the artifacts; told and checked before anything is written.

The constants were measured (benchmarks/large_model.py and encoder.py on a 2-core x86-64 machine). They are meant to be
right within a factor of two where memory and seconds are concerned, and within a tenth for the size of artifacts.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

from planish.checkpoint import Checkpoint
from planish_passes.errors import PlanishError
from planish_passes.weights import TensorSpec, WeightFormat

_MB = 1_000_000
_IMPORTED = 450 * _MB  # torch, transformers and an exporter, before any model
_PER_LAYER = 6 * _MB  # nodes of the graph, as torch and as ONNX
_BLOCKS = 60 * _MB  # row blocks in work
_SPARE = 64 * _MB  # of disk: tokenizer, graph, reports
_ASKED = 400  # tokens whose logits, by the original, lie on disk until they are compared with
_START, _PER_TRACED_LAYER, _PER_LOWERED_LAYER = 7.0, 0.45, 0.35  # CPU seconds
_ROUNDED = {"nearest": 120e6, "search": 18e6, "calibrated": 3.2e6}  # weights per CPU second
_WRITTEN = 500e6  # weights per CPU second and target
_HALF = frozenset(
    {"directml", "coreml", "executorch:coreml", "executorch:qnn"}
)  # targets that store float weights and scales as float16

Rounding = Literal["nearest", "search", "calibrated"]


@dataclass(frozen=True)
class Estimate:
    """What a compile will take.

    Args:
        memory: peak resident bytes. It does not depend on the number of weights, but when the original runs as well.
        scratch: bytes of quantised weights, and of the original's answers, that lie on disk while compiling.
        artifacts: target -> bytes.
        seconds: CPU seconds, without the checks of artifacts.
    """

    memory: int
    scratch: int
    artifacts: Mapping[str, int]
    seconds: float

    @property
    def disk(self) -> int:
        """Bytes of free disk that are needed."""
        return self.scratch + sum(self.artifacts.values()) + _SPARE

    def __str__(self) -> str:
        artifacts = ", ".join(f"{name} {_size(size)}" for name, size in self.artifacts.items())
        return (
            f"about {_size(self.memory)} of memory, {_size(self.disk)} of disk, {self.seconds:.0f} s of CPU time; "
            f"artifacts: {artifacts}"
        )


def estimate(
    checkpoint: Checkpoint,
    config: Any,
    format: WeightFormat | None,
    targets: Sequence[str],
    *,
    rounding: Rounding = "nearest",
    verify: bool = True,
    kept: Mapping[str, tuple[WeightFormat, int]] | None = None,
) -> Estimate:
    """Estimate one compile from shapes alone; no weight is read.

    Args:
        checkpoint: the opened weight files (`Source.checkpoint`).
        config: the model's config.
        format: of quantised weights; None = none are quantised.
        targets: names.
        rounding: how integers are found.
        verify: the original model is loaded and run, in float32.
        kept: tensor of the checkpoint -> the format that it has there, and how many numbers each of its groups has
            (scale, minimum), for weights that are taken as they are.
    """
    keys = list(checkpoint.keys())
    specs = [checkpoint.spec(key) for key in keys]
    formats = [(kept or {}).get(key, (format, 1)) for key in keys]
    weights = sum(prod(s.shape) for s in specs)
    layers = _layers(config)
    tables = _rotary_tables(config)
    scratch = sum(_quantised(s, format, 4) for s in specs if _covered(s)) if format else 0
    scratch += 4 * _ASKED * int(getattr(_text_config(config), "vocab_size", 0) or 0) if verify else 0
    seconds = _START + layers * (_PER_TRACED_LAYER + len(targets) * _PER_LOWERED_LAYER)
    seconds += len(targets) * weights / _WRITTEN + (weights / _ROUNDED[rounding] if format else 0)
    memory = _IMPORTED + layers * _PER_LAYER + _BLOCKS + 3 * tables + (4 * weights if verify else 0)
    return Estimate(memory, scratch, {t: _artifact(specs, formats, t) + tables for t in targets}, seconds)


def check_room(needed: Estimate, folder: Path) -> tuple[str, ...]:
    """Refuse a compile for which the disk is too small; say so when memory is.

    Args:
        folder: where the bundle will be; scratch files lie beside it. Its nearest existing parent counts.

    Returns:
        Notes for the user.

    Raises:
        PlanishError: not enough free disk. Nothing has been written.
    """
    at = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(at).free
    if free < needed.disk:
        raise PlanishError(
            f"There is not enough space: about {_size(needed.disk)} are needed, {_size(free)} are free.",
            str(at),
            "free some space, or choose another disk with --output",
        )
    available = _available_memory()
    if available is None or available >= needed.memory:
        return ()
    return (f"about {_size(needed.memory)} of memory are needed, {_size(available)} are available: it may get slow",)


def _covered(spec: TensorSpec) -> bool:
    return len(spec.shape) == 2 and min(spec.shape) > 1 and spec.dtype.is_floating_point


def _artifact(specs: Iterable[TensorSpec], formats: Iterable[tuple[WeightFormat | None, int]], target: str) -> int:
    wide = 2 if target in _HALF else 4
    return sum(
        _quantised(s, format, wide * numbers)
        if format and _covered(s)
        else prod(s.shape) * min(wide, s.dtype.itemsize * 2)
        for s, (format, numbers) in zip(specs, formats, strict=True)
    )


def _quantised(spec: TensorSpec, format: WeightFormat | None, scale: int) -> int:
    assert format is not None
    rows, columns = spec.shape
    groups = -(-columns // format.group) if format.group else 1
    zeros = 0 if format.symmetric else -(-groups * format.bits // 8)
    return rows * (-(-columns * format.bits // 8) + groups * scale + zeros)


def _text_config(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _layers(config: Any) -> int:
    found = getattr(_text_config(config), "num_hidden_layers", None)
    return found if isinstance(found, int) else 12  # backbones of pictures count stages instead


def _rotary_tables(config: Any) -> int:
    text = _text_config(config)
    if not getattr(text, "rope_parameters", None):
        return 0
    heads = getattr(text, "num_attention_heads", 1)
    width = getattr(text, "head_dim", None) or getattr(text, "hidden_size", 0) // heads
    return int(getattr(text, "max_position_embeddings", 0) * width * 4)  # cosines and sines of half the width


def _available_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass  # not Linux: all of it, where the system tells
    try:
        return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return None


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
