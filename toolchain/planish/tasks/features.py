"""Features of whatever the model reads: text or pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from planish.tasks.base import Alone, Call, Task
from planish.tasks.image import ImageTask
from planish.tasks.text import TextTask


@dataclass(frozen=True)
class FeatureTask(Alone):
    """The last hidden state; the model's main input says what goes in."""

    name: str = "feature-extraction"
    outputs: tuple[str, ...] = ("last_hidden_state",)
    metric: str = "embedding"
    entry: str = "encode"

    def call(self, config: Any, model: nn.Module) -> Call:
        """Of text or of pictures, by the model's main input."""
        return self._of(getattr(model, "main_input_name", "") == "pixel_values").call(config, model)

    def samples(self, folder: Path, config: Any, longest: int) -> Sequence[Mapping[str, Tensor]]:
        """Sentences, or pictures where there is no sequence."""
        return self._of(longest == 0).samples(folder, config, longest)

    def _of(self, pictures: bool) -> Task:
        kind = ImageTask if pictures else TextTask
        return kind(self.name, self.outputs, self.metric)


TASKS = (FeatureTask(),)
