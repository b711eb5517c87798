"""ExecuTorch: a .pte for Android and other devices, with XNNPACK for what it computes and portable kernels for the rest."""

from planish_targets.executorch.target import ExecutorchTarget

TARGET = ExecutorchTarget()
