"""Integers of 2 or 4 bits, several to a byte: unsigned, the first in the lowest bits."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(values: Tensor, bits: int) -> Tensor:
    """Signed integers of 2, 4 or 8 bits, int8 [N, K], to uint8 [N, ceil(K * bits / 8)] with 2^(bits-1) added."""
    codes = values.view(torch.uint8).bitwise_xor(128) if bits == 8 else (values + 2 ** (bits - 1)).view(torch.uint8)
    each = 8 // bits
    if each == 1:
        return codes
    if codes.shape[1] % each:
        codes = torch.nn.functional.pad(codes, (0, -codes.shape[1] % each))
    while each > 1:  # two neighbours become one number of twice the width
        pairs = codes.contiguous().view(torch.int16)
        codes, bits, each = _halves(pairs, bits), bits * 2, each // 2
    return codes


def _halves(pairs: Tensor, bits: int) -> Tensor:
    return pairs.bitwise_right_shift(8 - bits).bitwise_or_(pairs).bitwise_and_(2 ** (2 * bits) - 1).to(torch.uint8)


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """The reverse of `pack`: int8 [N, columns]."""
    codes, width = packed, 8
    while width > bits:
        width //= 2
        pairs = codes.to(torch.int16)
        pairs = pairs.bitwise_left_shift(8 - width).bitwise_or_(pairs).bitwise_and_((2**width - 1) * 257)
        codes = pairs.view(torch.uint8)
    codes = codes[:, :columns]
    return codes.bitwise_xor(128).view(torch.int8) if bits == 8 else codes.view(torch.int8) - 2 ** (bits - 1)
