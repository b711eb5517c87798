"""Resizing of the last two dimensions, by sampling a grid of source positions along each."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from planish_targets.coreml.mil.ops.registry import OpError, ints, number, op


def grid(size: int, target: int, mode: str) -> Tensor:
    """Source position of each of `target` samples of an axis of `size` elements, fp32, by sampling mode."""
    step = torch.arange(target, dtype=torch.float32)
    if mode == "STRICT_ALIGN_CORNERS" or (mode == "ALIGN_CORNERS" and target > 1):
        points = step * ((size - 1) / max(target - 1, 1))
    elif mode == "ALIGN_CORNERS":
        points = torch.full((1,), (size - 1) / 2)
    elif mode == "DEFAULT":
        points = step * (size / target)
    elif mode == "OFFSET_CORNERS":
        delta = max(1, size - 1) / target
        points = 0.5 * delta + step * delta
    elif mode == "UNALIGN_CORNERS":
        points = (step + 0.5) * (size / target) - 0.5
    else:
        raise OpError(f"unknown sampling mode {mode!r}")
    return points.clamp(0, size - 1)


def interpolate(x: Tensor, axis: int, points: Tensor) -> Tensor:
    """Linear interpolation of x along an axis at fractional positions."""
    low = points.floor().to(torch.int64)
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    weight = (points - low).reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])
    return x.index_select(axis, low) * (1 - weight) + x.index_select(axis, high) * weight


def nearest(x: Tensor, axis: int, target: int, scale: float) -> Tensor:
    """Element floor(i / scale) of an axis for each i below target."""
    at = torch.floor(torch.arange(target, dtype=torch.float64) / scale).to(torch.int64)
    return x.index_select(axis, at.clamp(max=x.shape[axis] - 1))


@op("upsample_nearest_neighbor")
def upsample_nearest_neighbor(
    x: Tensor, scale_factor_height: Tensor | int = 1, scale_factor_width: Tensor | int = 1
) -> Tensor:
    """Repeat rows and columns."""
    for axis, factor in ((-2, number(scale_factor_height)), (-1, number(scale_factor_width))):
        x = nearest(x, axis, int(x.shape[axis] * factor), factor)
    return x


@op("resize_nearest_neighbor")
def resize_nearest_neighbor(x: Tensor, target_size_height: Tensor, target_size_width: Tensor) -> Tensor:
    """Nearest element, rounded down, for a target size."""
    for axis, target in ((-2, int(target_size_height)), (-1, int(target_size_width))):
        x = nearest(x, axis, target, target / x.shape[axis])
    return x


@op("upsample_bilinear")
def upsample_bilinear(
    x: Tensor,
    scale_factor_height: Tensor | int = 1,
    scale_factor_width: Tensor | int = 1,
    align_corners: Tensor | bool = True,
    half_pixel_centers: Tensor | None = None,
) -> Tensor:
    """Bilinear interpolation; the scale is recomputed from the rounded output size."""
    aligned = bool(align_corners)
    centred = not aligned if half_pixel_centers is None else bool(half_pixel_centers)
    if aligned and centred:
        raise OpError("align_corners and half_pixel_centers exclude each other")
    mode = "STRICT_ALIGN_CORNERS" if aligned else "UNALIGN_CORNERS" if centred else "DEFAULT"
    for axis, factor in ((-2, number(scale_factor_height)), (-1, number(scale_factor_width))):
        x = interpolate(x, axis, grid(x.shape[axis], int(x.shape[axis] * factor), mode))
    return x


@op("resize_bilinear")
def resize_bilinear(
    x: Tensor,
    target_size_height: Tensor | int = 1,
    target_size_width: Tensor | int = 1,
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """Bilinear interpolation for a target size."""
    for axis, target in ((-2, int(number(target_size_height))), (-1, int(number(target_size_width)))):
        x = interpolate(x, axis, grid(x.shape[axis], target, sampling_mode))
    return x


@op("resize")
def resize(
    x: Tensor,
    shape: Tensor,
    resized_dims: Tensor,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """Resize the last resized_dims dimensions to the last entries of shape; 0 keeps a size."""
    wanted, count = ints(shape), int(resized_dims)
    for axis in range(-count, 0):
        target = wanted[axis] or x.shape[axis]
        if interpolation_mode == "LINEAR":
            x = interpolate(x, axis, grid(x.shape[axis], target, sampling_mode))
        elif interpolation_mode == "NEAREST_NEIGHBOR" and sampling_mode == "DEFAULT":
            x = nearest(x, axis, target, target / x.shape[axis])
        else:
            raise OpError(f"no published rule for {interpolation_mode} with {sampling_mode}")
    return x


@op("crop", moves=True)
def crop(x: Tensor, crop_height: Tensor, crop_width: Tensor) -> Tensor:
    """Drop rows and columns from both ends."""
    (top, bottom), (left, right) = ints(crop_height), ints(crop_width)
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


@op("resample")
def resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: Tensor,
    coordinates_mode: str,
    align_corners: Tensor,
) -> Tensor:
    """Sample images (B, C, H, W) at coordinates (B, H2, W2, 2) in the order x, y, within [-1, 1]."""
    modes = {"constant": "zeros", "border": "border", "reflection": "reflection"}
    if coordinates_mode != "normalized_minus_one_to_one" or padding_mode not in modes:
        raise OpError(f"coordinates {coordinates_mode} with padding {padding_mode} are not implemented")
    if padding_mode == "constant" and float(padding_value) != 0:
        raise OpError("a padding value other than 0 is not implemented")
    return F.grid_sample(x, coordinates.to(x.dtype), sampling_mode, modes[padding_mode], bool(align_corners))
