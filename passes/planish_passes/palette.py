"""Weights as indices into small tables of values (palettes).

Neighbouring output channels share one table: `tables[row // (N / G)][index]`. A community
measurement has 4-bit tables for 32 channels stay on the Neural Engine, where blockwise integers of small models did not
(alvaro-videla.com/ane-book).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from planish_passes.expected import FORMS
from planish_passes.ops import composite
from planish_passes.program import Program, op_name

INDICES, TABLES = ".lut_indices", ".lut_tables"

FORMS["planish.linear_lut"] = "aten.linear"


@dataclass(frozen=True)
class PaletteFormat:
    """How a weight [N, K] becomes a palette.

    Args:
        bits: width of an index; a table has 2^bits entries.
        group: neighbouring output channels that share a table; divides N.
    """

    bits: int
    group: int

    def nbytes(self, rows: int, columns: int) -> int:
        """Bytes of the packed indices and the float16 tables of a weight [rows, columns]."""
        return -(-rows * columns * self.bits // 8) + rows // self.group * 2**self.bits * 2


def look_up(indices: Tensor, entries: Tensor) -> Tensor:
    """uint8 [N, K] and tables [G, E] to the values [N, K]; G divides N."""
    rows, columns = indices.shape
    grouped = indices.view(entries.shape[0], -1).long()
    return entries.gather(1, grouped).view(rows, columns)


@composite(
    "linear_lut(Tensor x, Tensor indices, Tensor tables, Tensor? bias) -> Tensor",
    lambda x, indices, *_: x.new_empty((*x.shape[:-1], indices.shape[0])),
)
def linear_lut(x: Tensor, indices: Tensor, tables: Tensor, bias: Tensor | None) -> Tensor:
    """x @ look_up(indices, tables)^T + bias.

    Args:
        x: [..., K].
        indices: uint8 [N, K].
        tables: [G, E], G divides N: neighbouring rows share a table of E values.
        bias: [N] or None.
    """
    return torch.nn.functional.linear(x, look_up(indices, tables.to(x.dtype)), bias)


@dataclass(frozen=True)
class Palette:
    """Indices and tables of a weight.

    Args:
        indices: uint8 [N, K], below E.
        tables: float32 [G, E], ascending, every value exactly representable in float16; G divides N.
    """

    indices: Tensor
    tables: Tensor

    def dequantize(self) -> Tensor:
        """float32 [N, K]."""
        return look_up(self.indices, self.tables)


def palettes(program: Program) -> dict[str, Palette]:
    """The palettes of a program, by the name of the weight that they replace."""
    names, found = program.weight_names(), defaultdict[str, Palette]()
    for node in program.graph.nodes:
        if node.op == "call_function" and op_name(node) == "planish.linear_lut":
            name = names[node.args[1].name].removesuffix(INDICES)
            if name not in found:
                found[name] = Palette(program.weights.read(name + INDICES), program.weights.read(name + TABLES))
    return dict(found)
