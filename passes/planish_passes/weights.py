"""Weights as lazy, named tensors: read or computed when written, then dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from planish_passes.rows import Entry, Made, Rows, computed, joined, width_of


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
    """Integers and scales: w = (values - zero_points) * scales + minima, broadcast over groups.

    Args:
        values: int8 [N, K].
        scales: float32 [N, K / group], every one exactly representable in float16.
        zero_points: int8 [N, K / group] or None when symmetric.
        format: the format of the integers.
        minima: float32 [N, K / group] or None.
    """

    values: Tensor
    scales: Tensor
    zero_points: Tensor | None
    format: WeightFormat
    minima: Tensor | None = None

    def dequantize(self) -> Tensor:
        """float32 [N, K]."""
        rows, columns = self.values.shape
        grouped = self.values.to(torch.float32).view(rows, self.scales.shape[1], -1)
        if self.zero_points is not None:
            grouped = grouped - self.zero_points.to(torch.float32)[..., None]
        real = grouped * self.scales[..., None]
        return (real if self.minima is None else real + self.minima[..., None]).view(rows, columns)


@dataclass(frozen=True)
class WeightStore:
    """Names to lazy tensors. Immutable: `derive` and `with_tensor` return a new store that shares the old entries.

    Nobody may write into a tensor that was read: it may be a view of a file, or kept.
    """

    _entries: Mapping[str, Entry] = field(default_factory=dict)

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

    def spans(self, name: str) -> tuple[tuple[int, int], ...]:
        """Row ranges (start, stop) that cover the tensor, each cheap in memory; one range where that is not possible.

        Tensors that are made together (integers and scales) have the same ranges.
        """
        return tuple(self._entries[name].spans())

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) along the first axis; a scalar has one row.

        A tensor that can only be had as a whole is read as a whole: ask for the ranges of `spans`.

        Raises:
            ValueError: as `read`.
        """
        entry = self._entries[name]
        if entry.rows is None:
            whole = self.read(name)
            return whole[start:stop] if whole.dim() else whole
        tensor = entry.rows(start, stop)
        wanted = TensorSpec((stop - start, *entry.spec.shape[1:]), entry.spec.dtype)
        if TensorSpec.of(tensor) != wanted:
            raise ValueError(f"{name}: declared {entry.spec}, got {TensorSpec.of(tensor)} for rows {start}..{stop}")
        return tensor

    def blocks(self, name: str) -> Iterator[Tensor]:
        """The tensor in the ranges of `spans`, one after the other."""
        for start, stop in self.spans(name):
            yield self.rows(name, start, stop)

    def with_lazy(
        self,
        name: str,
        spec: TensorSpec,
        read: Callable[[], Tensor],
        sources: tuple[str, ...] = (),
        rows: Rows | None = None,
    ) -> WeightStore:
        """A store with one more tensor, read by `read` each time that it is needed.

        Args:
            rows: (start, stop) -> rows [start, stop), where they can be had without the rest.
        """
        entry = Entry(spec, read, sources, rows if spec.shape else None, width_of(spec))
        return WeightStore({**self._entries, name: entry})

    def with_tensor(self, name: str, tensor: Tensor) -> WeightStore:
        """A store with one more tensor that lives in memory (for small constants)."""
        return self.with_lazy(name, TensorSpec.of(tensor), lambda: tensor, rows=lambda start, stop: tensor[start:stop])

    def derive(
        self,
        name: str,
        sources: tuple[str, ...],
        fn: Callable[..., Tensor],
        spec: TensorSpec,
        by_rows: bool = False,
    ) -> WeightStore:
        """A store with `name` = fn(*sources), computed when read and then dropped.

        Args:
            by_rows: row i of the result depends on row i of the sources alone, so that fn may be called with some rows
                of each. (Where a source cannot be had in rows, it is called with all of them.)
        """
        return self.derive_together({name: spec}, sources, fn, by_rows)

    def derive_together(
        self,
        specs: Mapping[str, TensorSpec],
        sources: tuple[str, ...],
        fn: Callable[..., Made],
        by_rows: bool = False,
    ) -> WeightStore:
        """A store with tensors that one call makes: who reads the same rows of each, one after the other, pays once.

        Args:
            specs: names in the order in which fn returns them (surplus results are dropped).
            by_rows: as in `derive`.
        """
        entries = tuple(self._entries[s] for s in sources)
        return WeightStore({**self._entries, **computed(dict(specs), sources, entries, fn, by_rows)})

    def concatenate(self, name: str, parts: tuple[str, ...]) -> WeightStore:
        """A store with `name` = `parts` one behind the other along the first axis."""
        first = self.spec(parts[0])
        spec = TensorSpec((sum(self.spec(p).shape[0] for p in parts), *first.shape[1:]), first.dtype)
        return WeightStore({**self._entries, name: joined(spec, [self._entries[p] for p in parts], parts)})

    def memoised(self, budget: int) -> WeightStore:
        """A store that keeps what it has read while it fits into `budget` bytes (for programs that run many times)."""
        kept: dict[str, Tensor] = {}
        room = [budget]

        def remember(name: str, entry: Entry) -> Entry:
            def read() -> Tensor:
                if name in kept:
                    return kept[name]
                tensor = entry.read()
                if entry.spec.nbytes <= room[0]:
                    room[0] -= entry.spec.nbytes
                    kept[name] = tensor
                return tensor

            def rows(start: int, stop: int) -> Tensor:
                assert entry.rows is not None
                return kept[name][start:stop] if name in kept else entry.rows(start, stop)

            return replace(entry, read=read, rows=rows if entry.rows else None)

        return WeightStore({n: remember(n, e) for n, e in self._entries.items()})

    def keep(self, names: set[str]) -> WeightStore:
        """A store of only these names (derivations keep what they need)."""
        return WeightStore({n: e for n, e in self._entries.items() if n in names})
