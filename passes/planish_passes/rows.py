"""Tensors that are read some rows at a time, so that memory does not grow with their size."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from planish_passes.weights import TensorSpec

# Elements per block, of the widest tensor involved: small enough for a processor's cache, large enough for its vectors.
BLOCK = 1 << 20

_REMEMBERED = 4  # makers at a time: the weights of one concatenation are read in turn

Rows: TypeAlias = Callable[[int, int], Tensor]
Made: TypeAlias = Tensor | Sequence[Tensor | None]


@dataclass(frozen=True)
class Entry:
    """One lazy tensor.

    Args:
        spec: its shape and dtype.
        read: all of it.
        sources: what it is made from.
        rows: (start, stop) -> those rows; None when it can only be had as a whole.
        width: elements of one row, in the widest tensor that it is made from.
    """

    spec: TensorSpec
    read: Callable[[], Tensor]
    sources: tuple[str, ...] = ()
    rows: Rows | None = None
    width: int = 1

    def spans(self) -> Iterator[tuple[int, int]]:
        """Row ranges of one block each; one range when the tensor can only be had as a whole."""
        count = self.spec.shape[0] if self.spec.shape else 1
        yield from cut(0, count, self.width if self.rows else 0)


def cut(start: int, stop: int, width: int) -> Iterator[tuple[int, int]]:
    """[start, stop) in ranges of at most BLOCK elements (at least one row); width 0 means one range."""
    step = max(1, BLOCK // width) if width else max(1, stop - start)
    for first in range(start, stop, step):
        yield first, min(first + step, stop)


def width_of(spec: TensorSpec) -> int:
    """Elements of one row."""
    return max(1, prod(spec.shape[1:]))


def stacked(spec: TensorSpec, blocks: Iterator[tuple[int, int, Tensor]], start: int, stop: int) -> Tensor:
    """Blocks (first, last, values) that cover [start, stop) as one tensor; a single block is handed on as it is."""
    whole: Tensor | None = None
    for first, last, block in blocks:
        if (first, last) == (start, stop):
            return block
        if whole is None:
            whole = torch.empty((stop - start, *spec.shape[1:]), dtype=spec.dtype)
        whole[first - start : last - start] = block
    return torch.empty((0, *spec.shape[1:]), dtype=spec.dtype) if whole is None else whole


def gathered(spec: TensorSpec, rows: Rows) -> Tensor:
    """A whole tensor, read in blocks."""
    count = spec.shape[0]
    return stacked(spec, ((*span, rows(*span)) for span in cut(0, count, width_of(spec))), 0, count)


def joined(spec: TensorSpec, parts: Sequence[Entry], sources: tuple[str, ...]) -> Entry:
    """Tensors one behind the other."""
    if any(p.rows is None for p in parts):
        return Entry(spec, lambda: torch.cat([p.read() for p in parts]), sources)

    def blocks(start: int, stop: int) -> Iterator[tuple[int, int, Tensor]]:
        at = 0
        for part in parts:
            count = part.spec.shape[0]
            low, high = max(start - at, 0), min(stop - at, count)
            if low < high:
                assert part.rows is not None
                yield at + low, at + high, part.rows(low, high)
            at += count

    def rows(start: int, stop: int) -> Tensor:
        return stacked(spec, blocks(start, stop), start, stop)

    return Entry(spec, lambda: rows(0, spec.shape[0]), sources, rows, max(p.width for p in parts))


def computed(
    made: dict[str, TensorSpec],
    names: tuple[str, ...],
    sources: tuple[Entry, ...],
    fn: Callable[..., Made],
    by_rows: bool,
) -> dict[str, Entry]:
    """Tensors that one function makes together; see `WeightStore.derive_together`."""
    counts = {spec.shape[:1] for spec in (*made.values(), *(e.spec for e in sources))}
    by_rows = by_rows and len(counts) == 1 and () not in counts and all(e.rows for e in sources)
    width = max([width_of(s) for s in made.values()] + [e.width for e in sources])
    shared = _Computed(tuple(made.items()), sources, fn, width if by_rows else 0)
    entries = {}
    for position, (name, spec) in enumerate(made.items()):
        rows = shared.part(position)
        count = spec.shape[0] if spec.shape else 1
        whole = Entry(spec, lambda rows=rows, count=count: rows(0, count), names)  # type: ignore[misc]
        entries[name] = replace(whole, rows=rows, width=width) if by_rows else whole
    return entries


class _Left(threading.local):
    """What was made and not asked for yet: maker -> (start, stop), {position: tensor}. Threads work on other rows."""

    def __init__(self) -> None:
        self.of: dict[_Computed, tuple[tuple[int, int] | None, dict[int, Tensor]]] = {}


_left = _Left()


class _Computed:
    """What a function makes of some rows is kept, each part until it is asked for: who reads all parts pays once."""

    def __init__(
        self,
        made: tuple[tuple[str, TensorSpec], ...],
        sources: tuple[Entry, ...],
        fn: Callable[..., Made],
        width: int,
    ) -> None:
        self.made, self.sources, self.fn, self.width = made, sources, fn, width

    def part(self, position: int) -> Rows:
        def rows(start: int, stop: int) -> Tensor:
            span, parts = _left.of.pop(self, (None, {}))
            if span != (start, stop) or position not in parts:
                parts.clear()  # before the next ones are made
                parts = self._make(start, stop)
            wanted = parts.pop(position)
            if parts:
                _left.of[self] = (start, stop), parts
                for oldest in list(_left.of)[:-_REMEMBERED]:
                    del _left.of[oldest]
            return wanted

        return rows

    def _make(self, start: int, stop: int) -> dict[int, Tensor]:
        if not self.width:
            return self._call(start, stop, [s.read() for s in self.sources])
        spans = list(cut(start, stop, self.width))
        whole: dict[int, Tensor] = {}
        for first, last in spans:
            block = self._call(first, last, [s.rows(first, last) for s in self.sources if s.rows])
            if len(spans) == 1:
                return block
            for position, tensor in block.items():
                if first == start:
                    whole[position] = tensor.new_empty((stop - start, *tensor.shape[1:]))
                whole[position][first - start : last - start] = tensor
        return whole

    def _call(self, start: int, stop: int, sources: list[Tensor]) -> dict[int, Tensor]:
        result = self.fn(*sources)
        parts = (result,) if isinstance(result, Tensor) else result
        found = {}
        for position, (name, spec) in enumerate(self.made):
            tensor = parts[position]
            shape = (stop - start, *spec.shape[1:]) if self.width else spec.shape
            if tensor is None or tuple(tensor.shape) != shape or tensor.dtype != spec.dtype:
                got = "nothing" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"
                raise ValueError(f"{name}: declared {spec}, got {got} for rows {start}..{stop}")
            found[position] = tensor
        return found
