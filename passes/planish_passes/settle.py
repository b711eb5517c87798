"""Weights that were expensive to compute, kept in a scratch file: computed once, written into many artifacts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from math import prod
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, fx

from planish_passes.bits import pack, unpack
from planish_passes.errors import PlanishError
from planish_passes.program import Program, op_name
from planish_passes.weights import TensorSpec, WeightStore

T = TypeVar("T")
_FILE = "weights.bin"
_QUANTISED = {"planish.linear_q": 5, "planish.embedding_q": 4}  # operator -> which argument is the width
_PACKED = (2, 4)  # widths that share a byte; others take a byte each


def settle(store: WeightStore, names: Mapping[str, int], folder: Path) -> WeightStore:
    """Compute tensors once, block by block, into a file; the new store reads that file, some rows at a time.

    Tensors with the same sources are computed together (integers, scales and zero points of one weight). Blocks are
    computed on as many threads as torch may use. Nothing but blocks in work is in memory, and the file is not mapped.

    Args:
        names: name -> bits of its integers, when it is an int8 tensor of narrower integers; 0 = stored as it is.
        folder: where the file is written (created if missing); it must stay while the store is in use.

    Raises:
        PlanishError: a weight cannot be computed (names it), or the disk is full.
    """
    shelf = Shelf(folder)
    together: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for name, bits in names.items():
        shelf.reserve(name, store.spec(name), bits)
        together[store.sources(name) or (name,), store.spans(name)].append(name)
    with workers() as (pool, count):

        def write(group: list[str], start: int, stop: int) -> None:
            try:
                for name in group:
                    shelf.write(name, start, store.rows(name, start, stop))
            except PlanishError as problem:
                raise PlanishError(problem.what, f"{group[0]}: {problem.where}", problem.hint) from problem

        work = ((group, *span) for group in together.values() for span in store.spans(group[0]))
        for _ in ordered(pool, (lambda a=a: write(*a) for a in work), count):  # type: ignore[misc]
            pass
    return shelf.onto(store)


def settle_quantised(program: Program, folder: Path) -> Program:
    """`settle` the integers, scales and zero points of every quantised weight of a program."""
    names, found = program.weight_names(), dict[str, int]()
    for node in program.graph.nodes:
        if node.op == "call_function" and op_name(node) in _QUANTISED:
            bits = int(node.args[_QUANTISED[op_name(node)]])
            values, scales, zeros = (a if isinstance(a, fx.Node) else None for a in node.args[1:4])
            found |= {
                names[n.name]: width for n, width in ((values, bits), (scales, 0), (zeros, bits)) if n is not None
            }
    return replace(program, weights=settle(program.weights, found, folder))


@dataclass(frozen=True)
class _Place:
    spec: TensorSpec
    bits: int
    offset: int

    @property
    def columns(self) -> int:
        return prod(self.spec.shape[1:])

    @property
    def row_bytes(self) -> int:
        return -(-self.columns * self.bits // 8) if self.bits else self.columns * self.spec.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return (self.spec.shape[0] if self.spec.shape else 1) * self.row_bytes


@dataclass
class Shelf:
    """A scratch file of tensors. Room is reserved first, rows are written in any order and from any thread.

    Args:
        folder: where the file lies; one shelf to a folder.
    """

    folder: Path
    _places: dict[str, _Place] = field(default_factory=dict)
    _end: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(b"")

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / _FILE

    @property
    def nbytes(self) -> int:
        """Bytes that are reserved."""
        return self._end

    def reserve(self, name: str, spec: TensorSpec, bits: int = 0) -> None:
        """Make room for a tensor; `bits` as in `settle`."""
        place = _Place(spec, bits if bits in _PACKED and spec.dtype == torch.int8 else 0, self._end)
        self._places[name] = place
        self._end += place.nbytes

    def put(self, name: str, tensor: Tensor, bits: int = 0) -> None:
        """Reserve and write a whole tensor."""
        self.reserve(name, TensorSpec.of(tensor), bits)
        self.write(name, 0, tensor)

    def write(self, name: str, start: int, rows: Tensor) -> None:
        """Write rows [start, start + len(rows)).

        Raises:
            PlanishError: the disk is full.
            ValueError: an integer needs more bits than were reserved.
        """
        place, count = self._places[name], rows.shape[0] if rows.dim() else 1
        flat = rows.detach().reshape(count, place.columns).contiguous()
        if place.bits and flat.numel():
            low, high = (int(v) for v in flat.aminmax())
            if not -(2 ** (place.bits - 1)) <= low <= high < 2 ** (place.bits - 1):
                raise ValueError(f"{name}: integers {low}..{high} do not fit into {place.bits} bits")
            flat = pack(flat, place.bits)
        try:
            with self.path.open("r+b") as file:
                file.seek(place.offset + start * place.row_bytes)
                file.write(memoryview(flat.view(torch.uint8).numpy().reshape(-1)))
        except OSError as problem:
            reason = problem.strerror or str(problem)
            hint = f"{self.nbytes / 1e9:.1f} GB are needed: make room, or set TMPDIR to another disk"
            raise PlanishError(f"Quantised weights cannot be written: {reason}.", str(self.path), hint) from problem

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Read rows [start, stop) into memory of their own.

        Raises:
            PlanishError: the file is gone or cut short.
        """
        place = self._places[name]
        buffer = torch.empty((stop - start) * place.row_bytes, dtype=torch.uint8)
        try:
            with self.path.open("rb") as file:
                file.seek(place.offset + start * place.row_bytes)
                found = file.readinto(memoryview(buffer.numpy()))
        except OSError:
            found = -1
        if found != buffer.numel():
            raise PlanishError(
                f"Scratch data of {name} is gone or cut short.", str(self.path), "leave the folder alone; compile again"
            )
        shape = (stop - start, *place.spec.shape[1:])
        if place.bits:
            return unpack(buffer.view(stop - start, place.row_bytes), place.bits, place.columns).reshape(shape)
        return buffer.view(place.spec.dtype).view(shape if place.spec.shape else ())

    def onto(self, store: WeightStore) -> WeightStore:
        """The store with the tensors of the shelf in the place of its own (or beside them)."""
        for name, place in self._places.items():
            sources = store.sources(name) if name in store else ()
            store = store.with_lazy(name, place.spec, self._reader(name, place), sources, self._rows(name))
        return store

    def _reader(self, name: str, place: _Place) -> Callable[[], Tensor]:
        return lambda: self.rows(name, 0, place.spec.shape[0] if place.spec.shape else 1)

    def _rows(self, name: str) -> Callable[[int, int], Tensor]:
        return lambda start, stop: self.rows(name, start, stop)


@contextmanager
def workers() -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """A pool of as many threads as torch may use, each of which runs torch's operators alone; and their number."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)  # one thread per block is faster than many threads inside of each
    try:
        with ThreadPoolExecutor(count) as pool:
            yield pool, count
    finally:
        torch.set_num_threads(count)


def ordered(pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], T]], ahead: int) -> Iterator[T]:
    """Results in order; at most `ahead` + 1 tasks are in work or wait to be taken."""
    source = iter(tasks)
    waiting: list[Future[T]] = [pool.submit(t) for t in islice(source, ahead + 1)]
    try:
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(t) for t in islice(source, 1)]
    finally:
        for future in waiting:
            future.cancel()
