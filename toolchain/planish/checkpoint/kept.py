"""Which blocks of a GGUF file make up a weight of the model, where nothing but whole rows was moved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from planish.checkpoint.blocks import FORMATS, Blocks, gather, numbered, row_numbers
from planish.checkpoint.gguf import GgufFile, GgufNamed
from planish.checkpoint.names import NamePlan
from planish_passes.weights import TensorSpec

Arrange = Callable[[list[Tensor]], Tensor] | None  # None: one tensor, unchanged


@dataclass(frozen=True)
class Finder:
    """Weights of a model in their blocks.

    Args:
        model: on the meta device.
        checkpoint: under the names of `plan`.
        plan: weight names to checkpoint keys.
    """

    model: nn.Module
    checkpoint: GgufFile | GgufNamed
    plan: NamePlan

    def find(self, name: str) -> Blocks | str:
        """The blocks of a weight, or why it has none that could be kept."""
        if name not in self._made:
            return "it is not in the file"
        parts, arrange = self._made[name]
        file = self._file
        kinds = {file.kind(part) for part in parts}
        strange = sorted(kinds - FORMATS.keys())
        if strange or len(kinds) > 1:
            return f"the file stores it as {', '.join(sorted(kinds))}; {', '.join(FORMATS)} can be kept"
        shapes = [file.spec(part).shape for part in parts]
        columns = shapes[0][-1]
        if any(len(shape) != 2 or shape[1] != columns for shape in shapes):
            return "it is no matrix in the file"
        taken = None if arrange is None else row_numbers(arrange(numbered(shapes)), columns)
        if taken is None and arrange is not None:
            return "the model wants its elements in another order than the blocks have"
        return self._blocks(parts, kinds.pop(), taken)

    @property
    def _file(self) -> GgufFile:
        return self.checkpoint if isinstance(self.checkpoint, GgufFile) else self.checkpoint.file

    @cached_property
    def _made(self) -> dict[str, tuple[tuple[str, ...], Arrange]]:
        """Weight name -> GGUF names of what it is made of, and what happens to these on the way."""
        made: dict[str, tuple[tuple[str, ...], Arrange]] = {}
        for name, key in self.plan.direct.items():
            made[name] = self.checkpoint.parts(key), None if self.checkpoint.is_as_stored(key) else self._direct(key)
        for group in self.plan.conversions:
            parts = tuple(part for key in group.keys for part in self.checkpoint.parts(key))
            for name in self._names(group):
                made[name] = parts, self._converted(group, name)
        return made

    def _direct(self, key: str) -> Arrange:
        return lambda values: self.checkpoint.arrange(key, values)

    def _names(self, group: Any) -> list[str]:
        shaped = {k: torch.empty(self.checkpoint.spec(k).shape, device="meta") for k in group.keys}
        return list(group.run(shaped.__getitem__, self.model))

    def _converted(self, group: Any, name: str) -> Arrange:
        def arrange(values: list[Tensor]) -> Tensor:
            given, at = {}, 0
            for key in group.keys:
                count = len(self.checkpoint.parts(key))
                given[key] = self.checkpoint.arrange(key, values[at : at + count])
                at += count
            made: Tensor = group.run(given.__getitem__, self.model)[name]
            return made

        return arrange

    def _blocks(self, parts: tuple[str, ...], kind: str, taken: Tensor | None) -> Blocks:
        counts = [self._file.spec(part).shape[0] for part in parts]

        def rows(start: int, stop: int) -> Tensor:
            wanted = torch.arange(start, stop) if taken is None else taken[start:stop]
            return gather(wanted, counts, lambda number, some: self._file.raw(parts[number], some))

        some = self._file.raw(parts[0], torch.arange(1))
        count = counts[0] if taken is None else len(taken)
        return Blocks(kind, TensorSpec((count, some.shape[1]), torch.uint8), rows, parts)
