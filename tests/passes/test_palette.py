"""Palettes: formats, and the operator that looks values up."""

from __future__ import annotations

import torch

from planish_passes.clusters import cluster
from planish_passes.palette import PaletteFormat


def normal(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_the_operator_against_dense_weights() -> None:
    found, x = cluster(normal(8, 32), PaletteFormat(4, 4)), normal(3, 32, 1)
    dense = found.dequantize()
    assert torch.equal(
        torch.ops.planish.linear_lut(x, found.indices, found.tables, None), torch.nn.functional.linear(x, dense)
    )


def test_bytes_of_indices_and_of_tables() -> None:
    assert PaletteFormat(4, 16).nbytes(32, 10) == 32 * 10 // 2 + 2 * 16 * 2
    assert PaletteFormat(6, 4).nbytes(4, 3) == 9 + 64 * 2
