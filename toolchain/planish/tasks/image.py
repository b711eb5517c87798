"""Tasks whose input is one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from planish.tasks.base import Alone, Axis, Call, Input, Step


@dataclass(frozen=True)
class ImageTask(Alone):
    """A network over `pixel_values`, [B, channels, height, width] float32."""

    name: str
    outputs: tuple[str, ...]
    metric: str = "argmax"
    entry: str = "encode"

    def call(self, config: Any, model: nn.Module) -> Call:
        """`pixel_values` at the size that the config names (224 when it names none)."""
        height, width = image_size(config)
        channels = int(getattr(config, "num_channels", 3) or 3)
        pixels = Input("pixel_values", torch.float32, (Axis("batch", 1, 1024), channels, height, width))
        return Call(Step(model, [pixels.name], self.outputs), (pixels,), self.outputs)

    def samples(self, folder: Path, config: Any, longest: int) -> Sequence[Mapping[str, Tensor]]:
        """Synthetic pictures (gradients, checks, noise, edges), normalised to about [-1, 1]."""
        height, width = image_size(config)
        channels = int(getattr(config, "num_channels", 3) or 3)
        return [{"pixel_values": p[None]} for p in _pictures(channels, height, width)]


def image_size(config: Any) -> tuple[int, int]:
    """(height, width) in pixels."""
    size = getattr(config, "image_size", None) or 224
    if isinstance(size, (list, tuple)):
        return int(size[0]), int(size[-1])
    return int(size), int(size)


def _pictures(channels: int, height: int, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.linspace(-1, 1, height)[:, None].expand(height, width)
    x = torch.linspace(-1, 1, width)[None, :].expand(height, width)
    rings = torch.sin((x * x + y * y) * 20)
    checks = torch.sign(torch.sin(x * 12) * torch.sin(y * 12))
    # The flat one is not 0: a model whose biases are 0 answers 0 to it, and all that is left to compare is noise.
    plain = [x, y, rings, checks, x * y, -torch.ones_like(x)]
    shades = torch.linspace(0.4, 1.0, channels)[:, None, None]
    coloured = [p[None] * shades for p in plain]
    noise = [torch.rand(channels, height, width, generator=generator) * 2 - 1 for _ in range(4)]
    return [p.contiguous() for p in (*coloured, *noise)]


TASKS = (ImageTask("image-classification", ("logits",)),)
