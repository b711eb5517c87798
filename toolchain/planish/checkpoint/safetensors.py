"""Mapped reader of safetensors files: the header is checked completely before any tensor is touched.

Format: 8 bytes header length (little endian), a JSON header {name: {dtype, shape, data_offsets}}, then the data.
Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from planish.checkpoint.mapped import MappedFile
from planish_passes.errors import PlanishError
from planish_passes.weights import TensorSpec

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

AGAIN = "the file is damaged: download or copy it again"
# The limit of the format's own reader; a real header is far smaller.
_HEADER_LIMIT = 100_000_000


@dataclass(frozen=True)
class Span:
    """Where a tensor lies: bytes [begin, end) of a file."""

    file: MappedFile
    spec: TensorSpec
    begin: int
    end: int


class SafetensorsCheckpoint:
    """One or more safetensors files as one set of names.

    Raises:
        PlanishError: a file is truncated, damaged or of an unknown dtype, or two files hold the same name.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._spans: dict[str, Span] = {}
        self._last: Span | None = None
        for path in paths:
            for name, span in read_header(path).items():
                if name in self._spans:
                    both = f"{self._spans[name].file.path.name} and {path.name}"
                    raise PlanishError(f"The tensor {name} is in two files: {both}.", str(path.parent), AGAIN)
                self._spans[name] = span

    def keys(self) -> Iterable[str]:
        """Names in file order."""
        return self._spans.keys()

    def spec(self, key: str) -> TensorSpec:
        """Shape and dtype as stored."""
        return self._spans[key].spec

    def read(self, key: str) -> Tensor:
        """A read-only view of the file (zero-copy).

        The pages of the tensor that was read before are given back: a view of it reads them again where it needs them.
        """
        span = self._spans[key]
        if self._last is not None and self._last is not span:
            self._last.file.release(self._last.begin, self._last.end)
        self._last = span
        return span.file.view(span.begin, span.end, span.spec)

    def rows(self, key: str, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows [start, stop), cast."""
        span = self._spans[key]
        shape = (stop - start, *span.spec.shape[1:])
        step = TensorSpec(shape[1:], span.spec.dtype).nbytes
        begin = span.begin + start * step
        return span.file.copy(begin, begin + shape[0] * step, TensorSpec(shape, span.spec.dtype), dtype)

    def where(self, key: str) -> str:
        """The name of the file that holds a tensor."""
        return self._spans[key].file.path.name

    def release(self, key: str) -> None:
        """Give the pages of one tensor back."""
        span = self._spans[key]
        span.file.release(span.begin, span.end)


def read_header(path: Path) -> dict[str, Span]:
    """Parse and check the header of one file.

    Raises:
        PlanishError: naming the file and, where one is to blame, the tensor.
    """
    file = MappedFile.open(path)
    length = _header_length(file)
    try:
        header = json.loads(file.pages[8 : 8 + length], object_pairs_hook=_unique)
    except ValueError as error:
        raise PlanishError(f"The header is not readable: {error}.", str(path), AGAIN) from error
    header.pop("__metadata__", None)
    spans = {name: _span(file, name, entry, 8 + length) for name, entry in header.items()}
    _check_layout(file, spans, 8 + length)
    return spans


def _header_length(file: MappedFile) -> int:
    start = file.pages[: min(len(file), 64)]
    if start.startswith(b"version https://git-lfs"):
        raise PlanishError(
            "The file is a Git LFS pointer, not the weights.", str(file.path), "run `git lfs pull` in the repository"
        )
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or (length <= _HEADER_LIMIT and 8 + length > len(file)):
        raise PlanishError(
            f"The file is truncated inside its header: {len(file)} bytes, the header alone needs {8 + length}.",
            str(file.path),
            AGAIN,
        )
    if length > _HEADER_LIMIT or not start[8:].startswith(b"{"):
        raise PlanishError("The file is not a safetensors file.", str(file.path), AGAIN)
    return length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)} appears twice")
    return table


def _span(file: MappedFile, name: str, entry: Any, base: int) -> Span:
    try:
        kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        sane = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError) as error:
        raise PlanishError(f"The header entry of {name} is not readable.", str(file.path), AGAIN) from error
    if kind not in DTYPES:
        known = ", ".join(DTYPES)
        raise PlanishError(f"The tensor {name} has the unknown dtype {kind}.", str(file.path), f"known: {known}")
    spec = TensorSpec(shape, DTYPES[kind])
    if not sane or end - begin != spec.nbytes:
        raise PlanishError(
            f"The tensor {name} claims bytes {begin}..{end}, but {kind} {list(shape)} needs {spec.nbytes}.",
            str(file.path),
            AGAIN,
        )
    return Span(file, spec, base + begin, base + end)


def _check_layout(file: MappedFile, spans: dict[str, Span], base: int) -> None:
    position = base
    for name, span in sorted(spans.items(), key=lambda item: (item[1].begin, item[1].end)):
        if span.end > len(file):
            last = max(s.end for s in spans.values())
            raise PlanishError(
                f"The file is truncated: {last - len(file)} of {last} bytes are missing, from the tensor {name} on.",
                str(file.path),
                AGAIN,
            )
        if span.begin != position:
            fault = "overlaps the one before it" if span.begin < position else "leaves a gap before it"
            raise PlanishError(f"The tensor {name} {fault}.", str(file.path), AGAIN)
        position = span.end
    if position != len(file):
        raise PlanishError(f"{len(file) - position} bytes follow the last tensor.", str(file.path), AGAIN)
