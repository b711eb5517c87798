"""Read a .pte file: program, segments and XNNPACK graphs. Weights stay on disk until they are asked for."""

from __future__ import annotations

import json
import mmap
import re
import tempfile
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from planish_passes.errors import PlanishError
from planish_targets.executorch.header import Header, read_header
from planish_targets.executorch.ptd import SUFFIX, DataFile, open_ptd
from planish_targets.quiet import quiet

XNNPACK = "XnnpackBackend"
_EXTERNAL = 1  # TensorDataLocation
# ExecuTorch's scalar types have the numbers of c10's.
SCALAR_TYPES = {
    0: torch.uint8,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.int64,
    5: torch.float16,
    6: torch.float32,
    7: torch.float64,
    11: torch.bool,
    15: torch.bfloat16,
}


@dataclass(frozen=True)
class PteFile:
    """An open .pte file.

    Args:
        path: the file.
        header: its checked header.
        program: `executorch.exir.schema.Program`, segments not loaded.
    """

    path: Path
    header: Header
    program: Any
    _bytes: mmap.mmap

    @property
    def plan(self) -> Any:
        """The execution plan of the only method."""
        return self.program.execution_plan[0]

    def segment(self, index: int) -> bytes:
        """The bytes of one segment.

        Raises:
            PlanishError: the file has no such segment.
        """
        if index >= len(self.program.segments):
            raise PlanishError(f"segment {index} is not in the .pte file", str(self.path), "compile the model again")
        at = self.program.segments[index]
        begin = self.header.base + at.offset
        return self._bytes[begin : begin + at.size]

    @cached_property
    def data(self) -> DataFile:
        """The .ptd file of the same name, for what the program keeps outside.

        Raises:
            PlanishError: it is not there, or not whole.
        """
        return open_ptd(self.path.with_suffix(SUFFIX))

    @cached_property
    def _segments(self) -> dict[str, int]:
        return {e.key: e.segment_index for e in self.program.named_data or ()}

    def named_size(self, key: str) -> int:
        """Bytes of one named constant; see `named`."""
        inside = self._segments.get(key)
        return self.data.place(key)[1] if inside is None else int(self.program.segments[inside].size)

    def named(self, key: str) -> bytes:
        """The bytes of one named constant (the delegates' weights), from this file or its .ptd.

        Raises:
            PlanishError: it is in neither, or the .ptd is not there.
        """
        inside = self._segments.get(key)
        return self.data.named(key) if inside is None else self.segment(inside)

    def outside(self, value: int) -> str:
        """Name in the .ptd file of a constant tensor of the plan; "" when it is in this file."""
        told = self.plan.values[value].val.extra_tensor_info
        return str(told.fully_qualified_name) if told is not None and int(told.location) == _EXTERNAL else ""

    def is_constant(self, value: int) -> bool:
        """True when value `value` of the plan is a tensor whose data is stored in the file, or in its .ptd."""
        tensor = self.plan.values[value].val
        if type(tensor).__name__ != "Tensor" or tensor.allocation_info is not None:
            return False
        return bool(tensor.data_buffer_idx > 0 or self.outside(value))

    def constants(self) -> dict[Hashable, int]:
        """Each stored constant of the plan once: a key of its own -> index of the first value that it is."""
        found: dict[Hashable, int] = {}
        for index, value in enumerate(self.plan.values):
            if self.is_constant(index):
                found.setdefault(self.outside(index) or value.val.data_buffer_idx, index)
        return found

    def constant(self, value: int) -> Tensor:
        """The data of a constant tensor of the plan, by value index."""
        tensor = self.plan.values[value].val
        dtype, sizes = SCALAR_TYPES[int(tensor.scalar_type)], tuple(tensor.sizes)
        if key := self.outside(value):
            return from_bytes(self.data.named(key), dtype, sizes)
        where = self.program.constant_segment
        begin = self.header.base + self.program.segments[where.segment_index].offset
        begin += where.offsets[tensor.data_buffer_idx]
        count = torch.Size(sizes).numel()
        return from_bytes(self._bytes[begin : begin + count * dtype.itemsize], dtype, sizes)

    def payload(self, delegate: int) -> bytes:
        """What a delegate gets: for XNNPACK its serialised graph."""
        processed = self.plan.delegates[delegate].processed
        if int(processed.location) == 1:
            return self.segment(processed.index)
        return bytes(self.program.backend_delegate_data[processed.index].data)

    def planned_bytes(self) -> int:
        """Bytes of the memory-planned arena for everything that is not constant (a delegate's own memory is extra)."""
        return sum(self.plan.non_const_buffer_sizes)


def open_pte(path: Path) -> PteFile:
    """Open and parse a .pte file.

    Raises:
        PlanishError: it is not a whole .pte file; executorch is not installed.
    """
    header = read_header(path)
    try:
        with quiet():
            from executorch.exir._serialize._flatbuffer_program import _flatbuffer_to_program
    except ImportError as missing:
        raise PlanishError(f"reading .pte files needs executorch ({missing})", str(path), INSTALL) from missing
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        program = _flatbuffer_to_program(data[: header.program])
        program.execution_plan[0]
    # The generated flatbuffer reader checks nothing: garbage ends in whatever error its bytes lead to.
    except Exception as problem:
        raise PlanishError(
            f"the program in the .pte file cannot be read ({type(problem).__name__}: {problem})",
            str(path),
            "compile the model again, or copy the file again",
        ) from problem
    return PteFile(path, header, program, data)


INSTALL = "pip install 'planish[executorch]'"


def from_bytes(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A tensor of its own from little-endian bytes; padding behind the data is ignored."""
    count = torch.Size(shape).numel()
    if len(data) < count * dtype.itemsize:
        raise PlanishError(
            f"a constant of {list(shape)} needs {count * dtype.itemsize} bytes, {len(data)} are there",
            "the .pte file",
            "compile the model again, or copy the file again",
        )
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data[: count * dtype.itemsize]), dtype=dtype).view(shape)


def xnnpack_graphs(file: PteFile) -> dict[int, Mapping[str, Any]]:
    """Delegate index -> XNNPACK graph (schema: executorch/backends/xnnpack/serialization/schema.fbs) as JSON values."""
    with quiet():
        import executorch.backends.xnnpack.serialization as schema
        from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
        from executorch.exir._serialize._flatbuffer import _run_flatc
    indices = [i for i, d in enumerate(file.plan.delegates) if d.id == XNNPACK]
    if not indices:
        return {}
    with tempfile.TemporaryDirectory(prefix="planish-pte-") as scratch:
        folder = Path(scratch)
        for index in indices:
            payload = file.payload(index)
            head = XNNHeader.from_bytes(payload[: XNNHeader.EXPECTED_LENGTH])
            begin = head.flatbuffer_offset
            (folder / f"{index}.bin").write_bytes(payload[begin : begin + head.flatbuffer_size])
        rules = Path(schema.__path__[0], "schema.fbs")
        binaries = [str(folder / f"{index}.bin") for index in indices]
        _run_flatc(["--json", "--defaults-json", "--strict-json", "-o", scratch, str(rules), "--", *binaries])
        return {index: _json((folder / f"{index}.json").read_text()) for index in indices}


def _json(text: str) -> Mapping[str, Any]:
    # flatc prints infinities (bounds of nodes without an activation) bare, which is not JSON
    return json.loads(re.sub(r":\s*([+-]?)(inf|nan)\b", r': "\1\2"', text))  # type: ignore[no-any-return]
