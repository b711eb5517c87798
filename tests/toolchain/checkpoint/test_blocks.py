"""Blocks of GGUF types against the gguf package, bit for bit; rearranged rows and what is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, dequantize, quantize
from torch import Tensor

from planish.checkpoint import blocks
from planish.checkpoint.blocks import FORMATS, dequantised, gather, numbered, row_numbers, unpack

SIZES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}


def written_out(raw: Tensor, kind: str) -> Tensor:
    found = unpack(raw, kind)
    groups = found.values.view(len(raw), -1, 32).to(torch.float32) * found.scales[..., None]
    return (groups if found.minima is None else groups + found.minima[..., None]).flatten(1)


def wanted(raw: Tensor, kind: str) -> Tensor:
    return torch.from_numpy(dequantize(raw.numpy(), GGMLQuantizationType[kind]))


def quantised(kind: str) -> Tensor:
    values = np.random.default_rng(1).standard_normal((24, 96)).astype(np.float32)
    return torch.from_numpy(quantize(values, GGMLQuantizationType[kind]))


@pytest.mark.parametrize("kind", FORMATS)
def test_equals_gguf_to_the_bit(kind: str) -> None:
    raw = quantised(kind)
    assert torch.equal(written_out(raw, kind), wanted(raw, kind))
    assert torch.equal(dequantised(raw, kind), wanted(raw, kind))


@pytest.mark.parametrize("kind", FORMATS)
def test_any_integers_and_any_scales(kind: str) -> None:
    """Bytes that no quantiser writes: the lowest code, scales of zero, negative ones, subnormal ones."""
    raw = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (5, 12, SIZES[kind]), dtype=np.uint8))
    numbers = np.array([0, -0.75, 6e-8, 1.5, -2e-5, 65504, 3e-3, -1e-3, 0.25, 0.1, 2.0, -0.0], np.float16)
    for at in range(0, SIZES[kind] - FORMATS[kind].bits * 4, 2):
        raw[..., at : at + 2] = torch.from_numpy(np.roll(numbers, at).view(np.uint8).reshape(12, 2).copy())
    raw = raw.flatten(1)
    assert torch.equal(dequantised(raw, kind), wanted(raw, kind))
    found, truth = written_out(raw, kind), wanted(raw, kind)
    if kind != "Q4_1":
        assert torch.equal(found, truth)
        return
    minima = unpack(raw, kind).minima
    assert minima is not None
    largest = minima.abs().repeat_interleave(32, 1).maximum(truth.abs())
    assert bool(((found - truth).abs() <= largest * 2.0**-23).all())


@pytest.mark.parametrize("kind", FORMATS)
def test_integers_keep_to_their_width(kind: str) -> None:
    values = unpack(quantised(kind), kind).values
    limit = 2 ** (FORMATS[kind].bits - 1)
    assert values.dtype == torch.int8
    assert -limit <= int(values.min()) <= int(values.max()) < limit


def test_swapped_halves_of_a_byte_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = quantised("Q4_0")
    split = blocks._split
    monkeypatch.setattr(blocks, "_split", lambda *a: (split(*a)[0], split(*a)[1] << 4 | split(*a)[1] >> 4))
    assert not torch.equal(written_out(raw, "Q4_0"), wanted(raw, "Q4_0"))


def test_rows_in_another_order_are_found() -> None:
    order = torch.randperm(6)
    (given,) = numbered([(6, 32)])
    assert torch.equal(row_numbers(given[order], 32), order)  # type: ignore[arg-type]


def test_rows_of_two_tensors_are_found_and_gathered() -> None:
    first, second = numbered([(4, 32), (3, 32)])
    joined = torch.cat([second[1:], first, second[:1]])
    taken = row_numbers(joined, 32)
    assert taken is not None
    assert taken.tolist() == [5, 6, 0, 1, 2, 3, 4]
    read = [first, second]
    assert torch.equal(gather(taken, [4, 3], lambda number, rows: read[number][rows]), joined)


@pytest.mark.parametrize(
    "broken",
    [
        lambda t: t.t(),  # transposed
        lambda t: t.flip(1),  # within rows
        lambda t: t + 1,  # values
        lambda t: torch.cat([t[:, 32:], t[:, :32]], 1),  # whole blocks within rows
        lambda t: t.to(torch.float32),  # computed
        lambda t: t[None],
    ],
)
def test_what_is_no_rearrangement_of_rows(broken: object) -> None:
    (given,) = numbered([(64, 64)])
    assert row_numbers(broken(given), 64) is None  # type: ignore[operator]
