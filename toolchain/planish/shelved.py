"""Tensors that lie in a file until somebody asks for them, and are dropped again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True)
class Shelved(Mapping[str, Sequence[Tensor]]):
    """Name -> tensors, read anew each time.

    Args:
        file: safetensors; "NUMBER.name" -> tensor.
        counts: name -> how many.
    """

    file: Path
    counts: Mapping[str, int]

    def __getitem__(self, name: str) -> list[Tensor]:
        from safetensors import safe_open

        count = self.counts[name]
        with safe_open(self.file, "pt") as file:  # type: ignore[no-untyped-call]
            return [file.get_tensor(f"{number}.{name}") for number in range(count)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.counts)

    def __len__(self) -> int:
        return len(self.counts)


@dataclass(frozen=True)
class Single(Mapping[str, Tensor]):
    """The first tensor of each name."""

    of: Mapping[str, Sequence[Tensor]]

    def __getitem__(self, name: str) -> Tensor:
        return self.of[name][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self.of)

    def __len__(self) -> int:
        return len(self.of)


def shelved(tensors: Mapping[str, Sequence[Tensor]], file: Path) -> Shelved:
    """Write tensors to a file. What follows holds none of them."""
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"{n}.{name}": t.contiguous() for name, some in tensors.items() for n, t in enumerate(some)}, file)
    return Shelved(file, {name: len(some) for name, some in tensors.items()})
