"""What an artifact costs: work of operations, and memory of each of its entry points. Bytes and counts, no promises."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """What one operation does in a call of the longest length.

    Args:
        macs: multiply-accumulates of products; 0 for everything else.
        linear: weights take part in them: a linear layer or a convolution, not attention.
        moved: bytes that it reads and writes.
    """

    macs: int = 0
    linear: bool = False
    moved: int = 0


@dataclass(frozen=True)
class Memory:
    """Bytes that a loaded entry point is expected to need, beside those of the process and its libraries.

    Args:
        stored: constants in the files, each once.
        mapped: constants that stay in memory as they are stored.
        packed: constants that the accelerator keeps in a layout of its own, once for each reader.
        activations: planned for values between operations, at the longest call.
        states: planned for what lives from call to call (caches).
        workspace: what the accelerator allocates for values inside it, at the longest call.
        loading: the most that is needed on top while the file is opened.
        bookkeeping: what the runtime keeps for each operation.
        code: code and tables of the runtime's libraries that the first call touches.
    """

    stored: int
    mapped: int
    packed: int
    activations: int
    states: int
    workspace: int
    loading: int
    bookkeeping: int
    code: int

    @property
    def peak(self) -> int:
        """The larger one of opening and of the longest call."""
        held = self.mapped + self.packed + self.activations + self.states + self.bookkeeping
        return held + max(self.workspace + self.code, self.loading)


@dataclass(frozen=True)
class Method:
    """One entry point of an artifact.

    Args:
        name: what the runtime calls it.
        partitions: parts of it that the accelerator gets, each one a hand-over.
        memory: see there.
        peak: bytes of memory, `Memory.peak`.
        basis: how memory was estimated.
    """

    name: str
    partitions: int
    memory: Memory
    peak: int
    basis: str
