"""Bytes of grouped weights."""

import pytest
import torch

from planish_targets.onnx_graph.pack import pack, unpack


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_unpack_turns_pack_back(bits: int) -> None:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    values = torch.randint(low, high, (5, 13), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    packed = pack(values, bits)
    assert packed.shape == (5, -(-13 * bits // 8))
    assert torch.equal(unpack(packed, bits, 13), values)


def test_the_first_of_two_is_the_low_half() -> None:
    assert pack(torch.tensor([[-8, 7]], dtype=torch.int8), 4).tolist() == [[0xF0]]
