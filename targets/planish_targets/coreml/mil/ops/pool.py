"""Pooling, and the padding rules that it shares with convolution."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from planish_targets.coreml.mil.ops.registry import OpError, ints, op

AVERAGE: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
MAXIMUM: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def spatial_pads(
    pad_type: str, sizes: list[int], kernel: list[int], strides: list[int], custom: list[int]
) -> list[tuple[int, int]]:
    """(before, after) of each spatial dimension.

    Args:
        pad_type: valid, custom, same (an odd amount has its extra element after) or same_lower (before).
        sizes: input sizes of the spatial dimensions.
        kernel: kernel sizes, dilation included.
        custom: before and after of each dimension in turn, read when pad_type is custom.
    """
    if pad_type == "valid":
        return [(0, 0)] * len(sizes)
    if pad_type == "custom":
        if len(custom) != 2 * len(sizes):
            raise OpError(f"custom padding needs {2 * len(sizes)} amounts, has {len(custom)}")
        return [(custom[2 * i], custom[2 * i + 1]) for i in range(len(sizes))]
    if pad_type not in ("same", "same_lower"):
        raise OpError(f"unknown pad type {pad_type!r}")
    pads = []
    for size, window, stride in zip(sizes, kernel, strides, strict=True):
        total = max(0, -(-size // stride) * stride - size + window - stride)
        less, more = total // 2, total - total // 2
        pads.append((less, more) if pad_type == "same" else (more, less))
    return pads


class Windows:
    """Where the windows of one pooling operation lie."""

    def __init__(
        self,
        x: Tensor,
        kernel_sizes: Tensor,
        strides: Tensor | None,
        pad_type: str,
        pad: Tensor | None,
        ceil_mode: Tensor | bool,
    ) -> None:
        sizes = list(x.shape[2:])
        self.kernel = ints(kernel_sizes)
        self.strides = ints(strides, [1] * len(sizes))
        self.pads = spatial_pads(pad_type, sizes, self.kernel, self.strides, ints(pad, [0] * 2 * len(sizes)))
        self.overhang = [0] * len(sizes)
        if bool(ceil_mode):
            self.overhang = [self._overhang(i, size) for i, size in enumerate(sizes)]

    def _overhang(self, i: int, size: int) -> int:
        (before, after), stride, window = self.pads[i], self.strides[i], self.kernel[i]
        padded = size + before + after
        count = -(-(padded - window) // stride) + 1
        # no window may start in the padding at the end
        if (count - 1) * stride >= size + before and before + after > 0:
            count -= 1
        return max((count - 1) * stride + window - padded, 0)

    def pad(self, x: Tensor, value: float) -> Tensor:
        """x with its padding and its overhang filled with one value."""
        ends = [(before, after + extra) for (before, after), extra in zip(self.pads, self.overhang, strict=True)]
        return F.pad(x, [amount for pair in reversed(ends) for amount in pair], value=value)

    def mean(self, x: Tensor) -> Tensor:
        """Mean over each whole window of an already padded x."""
        return AVERAGE[len(self.kernel)](x, self.kernel, self.strides)


@op("max_pool")
def max_pool(
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    ceil_mode: Tensor | bool = False,
) -> Tensor:
    """Largest element of each window; padding never wins."""
    windows = Windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    return MAXIMUM[len(windows.kernel)](windows.pad(x, -torch.inf), windows.kernel, windows.strides)


@op("avg_pool")
def avg_pool(
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    exclude_padding_from_average: Tensor | bool = False,
    ceil_mode: Tensor | bool = False,
) -> Tensor:
    """Mean of each window; what hangs over the padded end never counts, padding counts unless excluded."""
    windows = Windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    inside = torch.ones((1, 1, *x.shape[2:]))
    if not bool(exclude_padding_from_average):
        inside = F.pad(inside, [amount for pair in reversed(windows.pads) for amount in pair], value=1.0)
        counted = F.pad(inside, [side for extra in reversed(windows.overhang) for side in (0, extra)])
    else:
        counted = windows.pad(inside, 0.0)
    return windows.mean(windows.pad(x, 0.0)) / windows.mean(counted)


@op("l2_pool")
def l2_pool(
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    ceil_mode: Tensor | bool = False,
) -> Tensor:
    """Square root of the sum of squares of each window."""
    windows = Windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    area = 1
    for size in windows.kernel:
        area *= size
    return torch.sqrt(windows.mean(windows.pad(x * x, 0.0)) * area)
