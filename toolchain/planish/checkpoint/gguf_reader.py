"""gguf's own reader, which transformers reads GGUF files with, in a tenth of the time: it takes seconds otherwise."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np


@contextmanager
def quick_gguf() -> Iterator[None]:
    """While transformers reads a GGUF file: gguf's reader and its table of names, with the same answers, but quick."""
    import gguf

    reader, table = gguf.GGUFReader, gguf.get_tensor_name_map
    # The table is always the same, and transformers builds it anew for every submodule: seconds for a deep model.
    gguf.GGUFReader, gguf.get_tensor_name_map = quick_reader(), cache(table)  # type: ignore[misc]
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, table  # type: ignore[misc]


@cache
def quick_reader() -> Any:
    """A subclass of `gguf.GGUFReader` whose fields hold the same contents.

    Slices of a numpy memmap look for shared memory, each of them, and a vocabulary is made of some 200,000 slices: here
    they are plain arrays, and arrays of metadata are walked through at once. A field has no part for the length of each
    string of an array; `ReaderField.data` and `contents` never name those.
    """
    from gguf import GGUFReader, GGUFValueType

    class QuickReader(GGUFReader):
        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, pages: Any) -> None:
            self._plain = pages.view(np.ndarray)

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
            known: tuple[int, list[Any], list[int], list[Any]] | None = None
            if raw_type == GGUFValueType.ARRAY and self.byte_order == "I":
                known = self._array(orig_offs)
            return super()._get_field_parts(orig_offs, raw_type) if known is None else known

        def _array(self, begin: int) -> tuple[int, list[Any], list[int], list[Any]] | None:
            kind, count = self._get(begin, np.uint32), self._get(begin + 4, np.uint64)
            item, number = GGUFValueType(kind[0]), int(count[0])
            if item == GGUFValueType.STRING:
                values, end = self._strings(begin + 12, number)
            elif item in self.gguf_scalar_to_np:
                found = self._get(begin + 12, self.gguf_scalar_to_np[item], number)
                if len(found) != number:
                    raise ValueError(f"an array of {number} elements ends behind the file")
                values, end = [found[i : i + 1] for i in range(number)], begin + 12 + found.nbytes
            else:
                return None
            return end - begin, [kind, count, *values], list(range(2, 2 + number)), [GGUFValueType.ARRAY, item]

        def _strings(self, at: int, number: int) -> tuple[list[Any], int]:
            length, values, data = struct.Struct("=Q").unpack_from, [], self.data
            for _ in range(number):
                (size,) = length(data, at)
                values.append(data[at + 8 : at + 8 + size])
                at += 8 + size
            return values, at

    return QuickReader
