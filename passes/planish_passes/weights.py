"""Weights as lazy, named tensors: read or computed when written, then dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a tensor whose values are not loaded."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        """The spec of a tensor (fake and meta tensors included)."""
        return cls(tuple(int(s) for s in tensor.shape), tensor.dtype)


@dataclass(frozen=True)
class WeightFormat:
    """How the integers of a quantised weight map back to real numbers.

    Args:
        bits: width of one integer.
        group: neighbouring input features that share one scale; 0 means the whole row (per channel).
        symmetric: True when the zero point is 0 everywhere.
        axis: the axis that has a scale per index (0 = output channels of a linear, rows of an embedding).
    """

    bits: int = 8
    group: int = 0
    symmetric: bool = True
    axis: int = 0

    @property
    def range(self) -> tuple[int, int]:
        """Smallest and largest integer. Symmetric formats leave out the lone lowest code, so that -w is exact too."""
        top = 2 ** (self.bits - 1) - 1
        return (-top if self.symmetric else -top - 1), top


@dataclass(frozen=True)
class QuantizedTensor:
    """Integers and scales: w = (values - zero_points) * scales, broadcast over groups.

    Args:
        values: int8 [N, K].
        scales: float32 [N, K / group], every one exactly representable in float16.
        zero_points: int8 [N, K / group] or None when symmetric.
        format: the format of the integers.
    """

    values: Tensor
    scales: Tensor
    zero_points: Tensor | None
    format: WeightFormat

    def dequantize(self) -> Tensor:
        """float32 [N, K]."""
        rows, columns = self.values.shape
        grouped = self.values.to(torch.float32).view(rows, self.scales.shape[1], -1)
        if self.zero_points is not None:
            grouped = grouped - self.zero_points.to(torch.float32)[..., None]
        return (grouped * self.scales[..., None]).view(rows, columns)


@dataclass(frozen=True)
class _Entry:
    spec: TensorSpec
    read: Callable[[], Tensor]
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class WeightStore:
    """Names to lazy tensors. Immutable: `derive` and `with_tensor` return a new store that shares the old entries."""

    _entries: Mapping[str, _Entry] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def spec(self, name: str) -> TensorSpec:
        """Shape and dtype, without touching the data."""
        return self._entries[name].spec

    def sources(self, name: str) -> tuple[str, ...]:
        """Where a tensor comes from: checkpoint keys, or the names it was derived from."""
        return self._entries[name].sources

    def read(self, name: str) -> Tensor:
        """Read or compute one tensor. The result is checked against its spec.

        Raises:
            ValueError: when a derivation yields another shape or dtype than it declared.
        """
        entry = self._entries[name]
        tensor = entry.read()
        if TensorSpec.of(tensor) != entry.spec:
            raise ValueError(f"{name}: declared {entry.spec}, got {TensorSpec.of(tensor)}")
        return tensor

    def with_lazy(
        self, name: str, spec: TensorSpec, read: Callable[[], Tensor], sources: tuple[str, ...] = ()
    ) -> WeightStore:
        """A store with one more tensor, read by `read` each time that it is needed."""
        return WeightStore({**self._entries, name: _Entry(spec, read, sources)})

    def with_tensor(self, name: str, tensor: Tensor) -> WeightStore:
        """A store with one more tensor that lives in memory (for small constants)."""
        return self.with_lazy(name, TensorSpec.of(tensor), lambda: tensor)

    def derive(self, name: str, sources: tuple[str, ...], fn: Callable[..., Tensor], spec: TensorSpec) -> WeightStore:
        """A store with `name` = fn(*sources), computed when read and then dropped."""
        entries = self._entries

        def compute() -> Tensor:
            return fn(*(entries[s].read() for s in sources))

        return self.with_lazy(name, spec, compute, sources)

    def memoised(self, budget: int) -> WeightStore:
        """A store that keeps what it has read while it fits into `budget` bytes (for programs that run many times)."""
        kept: dict[str, Tensor] = {}
        room = [budget]

        def remember(name: str, entry: _Entry) -> Callable[[], Tensor]:
            def read() -> Tensor:
                if name in kept:
                    return kept[name]
                tensor = entry.read()
                if entry.spec.nbytes <= room[0]:
                    room[0] -= entry.spec.nbytes
                    kept[name] = tensor
                return tensor

            return read

        return WeightStore({n: replace(e, read=remember(n, e)) for n, e in self._entries.items()})

    def keep(self, names: set[str]) -> WeightStore:
        """A store of only these names (derivations keep what they need)."""
        return WeightStore({n: e for n, e in self._entries.items() if n in names})
