import pytest
import torch

from planish_passes.bits import pack, unpack


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("columns", [1, 6, 7, 32])
def test_every_integer_survives(bits: int, columns: int) -> None:
    values = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (9, columns), dtype=torch.int8)
    packed = pack(values, bits)
    assert packed.shape == (9, -(-columns * bits // 8))
    assert torch.equal(unpack(packed, bits, columns), values)


def test_the_first_integer_lies_in_the_low_bits() -> None:
    assert pack(torch.tensor([[-8, 7, 0]], dtype=torch.int8), 4).tolist() == [[0xF0, 0x08]]
    assert pack(torch.tensor([[-2, -1, 0, 1]], dtype=torch.int8), 2).tolist() == [[0b11100100]]
    assert pack(torch.tensor([[-128, 127]], dtype=torch.int8), 8).tolist() == [[0, 255]]


def test_a_column_of_a_matrix_can_be_packed() -> None:
    values = torch.randint(-8, 8, (6, 4), dtype=torch.int8)
    assert torch.equal(unpack(pack(values.t(), 4), 4, 6), values.t())
