"""Look for NaN and infinity in every weight, once, in blocks."""

from __future__ import annotations

from collections.abc import Callable, Container

import numpy as np
import torch
from torch import Tensor

from planish_passes.errors import PlanishError
from planish_passes.weights import WeightStore

# Elements per block: bounds the memory of a cast tensor's mask, and the search for the first bad index.
_BLOCK = 1 << 20


class AbsentWeightError(PlanishError):
    """A weight that the checkpoint lacks and that the task should not need was read after all."""


def check_finite(
    store: WeightStore, *, skip: Container[str] = (), release: Callable[[str], None] | None = None, where: str = ""
) -> None:
    """Read every floating-point tensor of a store once.

    Args:
        skip: names not to read (aliases of others).
        release: called with each name when it is done, to give its memory back.
        where: the file or folder, for the message.

    Raises:
        PlanishError: naming the tensor and the index of the first value that is not finite.
    """
    for name in store:
        if name in skip or not store.spec(name).dtype.is_floating_point:
            continue
        try:
            found = _first_in_blocks(store, name)
        except AbsentWeightError:
            continue
        if found is not None:
            index, value = found
            source = ", ".join(store.sources(name)[:3])
            raise PlanishError(
                f"The weight {name} holds {value} at index {list(index)}.",
                f"{where or 'checkpoint'}: {source or name}",
                "the checkpoint is broken (a failed training run or conversion): use another one",
            )
        if release is not None:
            release(name)


def _first_in_blocks(store: WeightStore, name: str) -> tuple[tuple[int, ...], float] | None:
    for start, stop in store.spans(name):
        found = first_not_finite(store.rows(name, start, stop))
        if found is not None:
            index, value = found
            return ((index[0] + start, *index[1:]) if index else index), value
    return None


def first_not_finite(tensor: Tensor) -> tuple[tuple[int, ...], float] | None:
    """Index and value of the first NaN or infinity in row-major order, or None."""
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), _BLOCK):
        block = flat[start : start + _BLOCK]
        # One NaN or infinity makes the sum one too, and a sum is several times as fast as a mask. The reverse does
        # not hold (finite values may overflow the sum), so only the mask decides.
        if torch.isfinite(block.sum(dtype=_wide(block.dtype))):
            continue
        finite = torch.isfinite(block)
        if not finite.all():
            position = start + int((~finite).to(torch.uint8).argmax())
            index = tuple(int(i) for i in np.unravel_index(position, tuple(tensor.shape)))
            return index, float(flat[position])
    return None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
