"""A file mapped into memory, and what every kind of checkpoint can answer."""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from planish_passes.errors import PlanishError
from planish_passes.weights import TensorSpec


class Checkpoint(Protocol):
    """Named tensors on disk. Nothing is read before `read`."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every weight file in use."""
        ...

    def keys(self) -> Iterable[str]:
        """The names that the file format stores."""
        ...

    def spec(self, key: str) -> TensorSpec:
        """Shape and dtype as `read` returns them."""
        ...

    def read(self, key: str) -> Tensor:
        """The values. May be a read-only view of the file: never write into it."""
        ...

    def rows(self, key: str, start: int, stop: int, dtype: torch.dtype) -> Tensor | None:
        """Rows [start, stop) in memory of their own; the file's pages are given back. None: only `read` can tell."""
        ...

    def where(self, key: str) -> str:
        """The name of the file that holds a tensor."""
        ...

    def release(self, key: str) -> None:
        """Give the memory pages of one tensor back to the system; they are read again when needed."""
        ...


@dataclass(frozen=True)
class MappedFile:
    """A whole file, mapped read-only.

    Raises:
        PlanishError: when the file cannot be opened or is empty.
    """

    path: Path
    pages: mmap.mmap

    @classmethod
    def open(cls, path: Path) -> MappedFile:
        """Map a file; the mapping lives as long as the object or any tensor made from it."""
        try:
            with path.open("rb") as file:
                return cls(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except ValueError as error:
            raise PlanishError("The file is empty.", str(path), "download or copy it again") from error
        except OSError as error:
            reason, hint = error.strerror or str(error), "check that it exists and who may read it"
            raise PlanishError(f"The file cannot be read: {reason}.", str(path), hint) from error

    def __len__(self) -> int:
        return len(self.pages)

    def view(self, begin: int, end: int, spec: TensorSpec) -> Tensor:
        """Bytes [begin, end) as a tensor; a copy only where the offset is not aligned to the dtype."""
        if end == begin:
            return torch.empty(spec.shape, dtype=spec.dtype)
        if begin % spec.dtype.itemsize:
            return torch.frombuffer(bytearray(self.pages[begin:end]), dtype=spec.dtype).reshape(spec.shape)
        count = (end - begin) // spec.dtype.itemsize
        with warnings.catch_warnings():
            # torch warns that the memory is read-only; that is the purpose of the mapping.
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            flat = torch.frombuffer(self.pages, dtype=spec.dtype, count=count, offset=begin)
        return flat.reshape(spec.shape)

    def copy(self, begin: int, end: int, spec: TensorSpec, dtype: torch.dtype) -> Tensor:
        """Bytes [begin, end) as a tensor of another dtype, in memory of its own; the pages are given back."""
        tensor = self.view(begin, end, spec).to(dtype, copy=True)
        self.release(begin, end)
        return tensor

    def release(self, begin: int, end: int) -> None:
        """Drop the pages that lie wholly or partly in [begin, end)."""
        # Windows has no madvise: the pages stay until the system wants them.
        if hasattr(self.pages, "madvise") and end > begin:
            start = begin // mmap.PAGESIZE * mmap.PAGESIZE
            self.pages.madvise(mmap.MADV_DONTNEED, start, end - start)
