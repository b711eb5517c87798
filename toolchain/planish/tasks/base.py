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


class Step(nn.Module):
    """The traced call: named inputs in, fields of the model's output out. Those that are None are left out."""

    def __init__(self, model: nn.Module, names: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names, self.outputs = model, tuple(names), tuple(outputs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Positional, in the order of the names."""
        result = self.model(**dict(zip(self.names, tensors, strict=True)), return_dict=True)
        return tuple(result[o] for o in self.outputs if result.get(o) is not None)


@dataclass(frozen=True)
class Call:
    """What capture traces.

    Args:
        step: takes the inputs positionally, returns a tuple of outputs; holds the model as `model`.
        inputs: named, in order.
        outputs: names, in order.
        states: (name of an output, name of the input that it becomes in the next call).
    """

    step: nn.Module
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    states: tuple[tuple[str, str], ...] = ()


class Alone:
    """The part of a task whose program needs nothing of another program of the model."""

    dependent = False

    def original(self, model: nn.Module, sample: Mapping[str, Tensor]) -> nn.Module:
        """The model itself."""
        return model

    def given(self, model: nn.Module, sample: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Nothing."""
        return {}


class Task(Protocol):
    """One program of a task of optimum's naming."""

    @property
    def name(self) -> str:
        """optimum's name of the task."""
        ...

    @property
    def entry(self) -> str:
        """Name of the program: "encode" or "decode"."""
        ...

    @property
    def metric(self) -> str:
        """What a user of this task compares: "embedding" (cosine of pooled outputs), "argmax" (decisions), "tokens"
        (distributions over the next token) or "values" (outputs that another program reads)."""
        ...

    @property
    def dependent(self) -> bool:
        """True when inputs come from another program of the same model."""
        ...

    def call(self, config: Any, model: nn.Module) -> Call:
        """How to trace `model` (on meta)."""
        ...

    def samples(self, folder: Path, config: Any, longest: int) -> Sequence[Mapping[str, Tensor]]:
        """Real inputs, one mapping of [1, ...] tensors per example, made by the model's own tokenizer or processor.

        Args:
            folder: where tokenizer or processor files are.
            config: the model's config.
            longest: length of the longest sequence that the model takes.
        """
        ...

    def original(self, model: nn.Module, sample: Mapping[str, Tensor]) -> nn.Module:
        """What answers as the program should: the original model, seen from this program.

        Args:
            model: as transformers loads it.
            sample: one of what the first program of the task reads.
        """
        ...

    def given(self, model: nn.Module, sample: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs that another program makes of the sample; {} for a program that is not `dependent`."""
        ...
