"""ExecuTorch: a .pte for phones and boards; XNNPACK for what it computes, portable kernels for the rest."""

from planish_targets.executorch.target import ExecutorchTarget

TARGET = ExecutorchTarget()
