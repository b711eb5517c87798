"""Causal masks that are inputs of a package: what `--ane` asks for in place of comparisons inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from planish_passes.program import Program, op_name
from planish_targets.coreml.emit.emitter import arguments

AWAY = -30000.0  # e^-30000 is 0 in fp16 and fp32, and no score added to it leaves the range of fp16


@dataclass(frozen=True)
class Mask:
    """Which slots a token sees, as of `planish_passes.decoder_ops.causal_mask`.

    Args:
        window: the last so many slots; 0 = all before it.
        chunk: of its own part of the text, cut into parts of so many slots; 0 = of all.
    """

    window: int
    chunk: int

    @property
    def name(self) -> str:
        """The input's name in the package."""
        return "causal_mask" + f"_window_{self.window}" * (self.window > 0) + f"_chunk_{self.chunk}" * (self.chunk > 0)

    def values(self, slots: Tensor, length: int) -> Tensor:
        """float32 [1, 1, Q, length]: 0 where the tokens at these slots [1, Q] look, AWAY elsewhere."""
        row, column = slots.view(1, 1, -1, 1), torch.arange(length).view(1, 1, 1, -1)
        keep = row >= column
        if self.window > 0:
            keep &= row < column + self.window
        if self.chunk > 0:
            keep &= row // self.chunk == column // self.chunk
        return torch.where(keep, 0.0, AWAY)


def masks(program: Program) -> tuple[Mask, ...]:
    """The masks of a program whose caches are inside, each once; of attentions over slots that are an input."""
    found: dict[Mask, None] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and op_name(node) == "planish.resident_attention":
            given = arguments(node)
            if given["slots"].op == "placeholder":
                found[Mask(max(int(given["window"]), 0), max(int(given["chunk"]), 0))] = None
    return tuple(found)


def fed(options: Mapping[str, object], slots: Tensor) -> dict[str, Tensor]:
    """Values of the masks that a package takes, by its artifact's options, for tokens at these slots [1, Q]."""
    wanted, context = options.get("masks", {}), options.get("context", 0)
    assert isinstance(wanted, Mapping)
    assert isinstance(context, int)
    return {name: Mask(int(window), int(chunk)).values(slots, context) for name, (window, chunk) in wanted.items()}
