"""What a task decides: which inputs and outputs a program has and what real inputs look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Sample = Mapping[str, Tensor]


@dataclass(frozen=True)
class Axis:
    """A dimension that may vary: its name, and the smallest and largest value."""

    name: str
    low: int
    high: int


@dataclass(frozen=True)
class Input:
    """An input of the captured program: dtype and shape; a shape entry is a number or an Axis."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | Axis, ...]


class Task(Protocol):
    """A task of optimum's naming."""

    @property
    def name(self) -> str:
        """optimum's name of the task."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """Fields of the model's output, in order; those that are None are left out."""
        ...

    @property
    def metric(self) -> str:
        """What a user of this task compares: "embedding" (cosine of pooled outputs) or "argmax" (decisions)."""
        ...

    def inputs(self, config: Any, model: nn.Module) -> tuple[Input, ...]:
        """Inputs to trace `model` (on meta) with."""
        ...

    def samples(self, folder: Path, config: Any, longest: int) -> Sequence[Mapping[str, Tensor]]:
        """Real inputs, one mapping of [1, ...] tensors per example, made by the model's own tokenizer or processor.

        Args:
            folder: where tokenizer or processor files are.
            config: the model's config.
            longest: length of the longest sequence that the model takes.
        """
        ...
