"""Normalizations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from planish_targets.coreml.mil.ops.activation import per_channel
from planish_targets.coreml.mil.ops.registry import ints, number, op


@op("layer_norm")
def layer_norm(
    x: Tensor,
    axes: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | float = 1e-5,
) -> Tensor:
    """gamma * (x - mean) / sqrt(var + epsilon) + beta over the axes; gamma and beta have their sizes."""
    dims = sorted(axis % x.dim() for axis in ints(axes, list(range(x.dim()))))
    shape = [size if i in dims else 1 for i, size in enumerate(x.shape)]
    return _affine(_standardize(x, dims, epsilon), gamma, beta, shape)


@op("instance_norm")
def instance_norm(
    x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: Tensor | float = 1e-5
) -> Tensor:
    """Standardize each channel of each item over its spatial dimensions; gamma and beta by channel."""
    shape = [1, x.shape[1]] + [1] * (x.dim() - 2)
    return _affine(_standardize(x, list(range(2, x.dim())), epsilon), gamma, beta, shape)


@op("batch_norm")
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | float = 1e-5,
) -> Tensor:
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta, all by channel."""
    shape = [1, x.shape[1]] + [1] * (x.dim() - 2)
    centred = (x - per_channel(mean, x)) / torch.sqrt(per_channel(variance, x) + epsilon)
    return _affine(centred, gamma, beta, shape)


@op("l2_norm")
def l2_norm(x: Tensor, epsilon: Tensor | float = 1e-6) -> Tensor:
    """x / sqrt(sum of squares + epsilon) over the last three dimensions."""
    return x / torch.sqrt((x * x).sum(dim=[-3, -2, -1], keepdim=True) + epsilon)


@op("local_response_norm")
def local_response_norm(
    x: Tensor,
    size: Tensor,
    alpha: Tensor | float = 1e-4,
    beta: Tensor | float = 0.75,
    k: Tensor | float = 1.0,
) -> Tensor:
    """x / (k + alpha / size * sum of squares of neighbouring channels) ** beta."""
    return F.local_response_norm(x, int(size), number(alpha), number(beta), number(k))


def _standardize(x: Tensor, dims: list[int], epsilon: Tensor | float) -> Tensor:
    centred = x - x.mean(dim=dims, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(dim=dims, keepdim=True) + epsilon)


def _affine(x: Tensor, gamma: Tensor | None, beta: Tensor | None, shape: list[int]) -> Tensor:
    if gamma is not None:
        x = x * gamma.reshape(shape)
    return x if beta is None else x + beta.reshape(shape)
