"""Activations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from planish_targets.coreml.mil.ops.registry import OpError, number, op


@op("relu")
def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return torch.relu(x)


@op("relu6")
def relu6(x: Tensor) -> Tensor:
    """min(max(x, 0), 6)."""
    return torch.clamp(x, 0, 6)


@op("leaky_relu")
def leaky_relu(x: Tensor, alpha: Tensor) -> Tensor:
    """x where x >= 0, else alpha * x."""
    return torch.where(x >= 0, x, alpha * x)


@op("clamped_relu")
def clamped_relu(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """min(beta, x) where x >= 0, else min(beta, alpha * x)."""
    return torch.minimum(torch.where(x >= 0, x, alpha * x), beta)


@op("thresholded_relu")
def thresholded_relu(x: Tensor, alpha: Tensor) -> Tensor:
    """x where x >= alpha, else 0."""
    return torch.where(x >= alpha, x, torch.zeros_like(x))


@op("prelu")
def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """x where x > 0, else alpha * x with one alpha for each channel (dimension 1)."""
    return torch.where(x > 0, x, per_channel(alpha, x) * x)


@op("elu")
def elu(x: Tensor, alpha: Tensor) -> Tensor:
    """x where x > 0, else alpha * (exp(x) - 1)."""
    return torch.where(x > 0, x, alpha * torch.expm1(x))


@op("gelu")
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """Gaussian error linear unit, exact or by one of two approximations."""
    if mode == "EXACT":
        return F.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return F.gelu(x, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise OpError(f"unknown gelu mode {mode!r}")


@op("sigmoid")
def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return torch.sigmoid(x)


@op("sigmoid_hard")
def sigmoid_hard(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """min(max(alpha * x + beta, 0), 1)."""
    return torch.clamp(alpha * x + beta, 0, 1)


@op("silu")
def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return F.silu(x)


@op("linear_activation")
def linear_activation(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """alpha * x + beta."""
    return alpha * x + beta


@op("scaled_tanh")
def scaled_tanh(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """alpha * tanh(beta * x)."""
    return alpha * torch.tanh(beta * x)


@op("softplus")
def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x))."""
    return torch.logaddexp(x, torch.zeros_like(x))


@op("softplus_parametric")
def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """alpha * log(1 + exp(beta * x)) with one alpha and beta for each channel."""
    return per_channel(alpha, x) * softplus(per_channel(beta, x) * x)


@op("softsign")
def softsign(x: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    return x / (1 + x.abs())


@op("softmax")
def softmax(x: Tensor, axis: Tensor | int = -1) -> Tensor:
    """exp(x) over its sum along one axis."""
    return torch.softmax(x, dim=int(number(axis)))


def per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """A vector over dimension 1 of x, shaped to broadcast."""
    return parameter.reshape([1, -1] + [1] * (x.dim() - 2))
