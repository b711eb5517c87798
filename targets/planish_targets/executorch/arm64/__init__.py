"""ExecuTorch's arm64 wheel on an arm64 CPU that QEMU emulates: other kernels than those that run on x86-64.

`python -m planish_targets.executorch.arm64 --setup` makes what it needs, and without --setup it is a runner. See
docs/runner-protocol.md.
"""
