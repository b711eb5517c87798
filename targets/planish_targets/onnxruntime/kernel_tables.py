"""The tables of kernels in an .ort file, in an order that does not change from build to build.

ONNX Runtime writes them in the order of a hash that starts from an address in memory. They are written once more,
sorted, at the end of the file; the root points there, and where they were is zero. All else stays where it is.
The format: https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/core/flatbuffers/schema/ort.fbs
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from mmap import mmap
from pathlib import Path
from typing import Any

_FIELD = 10  # of the tables, in the layout (vtable) of the root
_ALIGNMENT = 16  # bytes
Span = tuple[int, int]  # offset, bytes


def sort_kernel_tables(path: Path) -> None:
    """Rewrite the tables of a file; a file without them is left alone.

    Raises:
        OSError: it cannot be written.
    """
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.InferenceSession import InferenceSession

    with path.open("r+b") as file:
        with mmap(file.fileno(), 0) as data:
            root = InferenceSession.GetRootAs(data, 0)
            tables = root.KernelTypeStrResolver()
            if tables is None:
                return
            written, spans = _sorted(tables), sorted(set(_spans(tables, data)))
            slot, end = root._tab.Pos + root._tab.Offset(_FIELD), len(data)
            kept = _layout(data, root._tab.Pos)
        begin = -(-end // _ALIGNMENT) * _ALIGNMENT
        for at, size in spans:
            if (at, size) != kept:
                file.seek(at)
                file.write(bytes(size))
        file.seek(begin)
        file.write(written)
        file.seek(slot)
        file.write(struct.pack("<I", begin + struct.unpack_from("<I", written)[0] - slot))


def _sorted(tables: Any) -> bytes:
    import flatbuffers
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs import (
        ArgTypeAndIndex,
        KernelTypeStrArgsEntry,
        KernelTypeStrResolver,
        OpIdKernelTypeStrArgsEntry,
    )

    builder = flatbuffers.Builder(4096)

    def vector(offsets: Sequence[int]) -> int:
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return int(builder.EndVector())

    def argument(given: Any) -> int:
        ArgTypeAndIndex.Start(builder)
        ArgTypeAndIndex.AddArgType(builder, given.ArgType())
        ArgTypeAndIndex.AddIndex(builder, given.Index())
        return int(ArgTypeAndIndex.End(builder))

    def kinds(entry: Any) -> int:
        arguments = vector([argument(entry.Args(i)) for i in range(entry.ArgsLength())])
        name = builder.CreateString(entry.KernelTypeStr())
        KernelTypeStrArgsEntry.Start(builder)
        KernelTypeStrArgsEntry.AddKernelTypeStr(builder, name)
        KernelTypeStrArgsEntry.AddArgs(builder, arguments)
        return int(KernelTypeStrArgsEntry.End(builder))

    def operator(entry: Any) -> int:
        inner = sorted(_kinds(entry), key=lambda kind: kind.KernelTypeStr())
        listed, name = vector([kinds(kind) for kind in inner]), builder.CreateString(entry.OpId())
        OpIdKernelTypeStrArgsEntry.Start(builder)
        OpIdKernelTypeStrArgsEntry.AddOpId(builder, name)
        OpIdKernelTypeStrArgsEntry.AddKernelTypeStrArgs(builder, listed)
        return int(OpIdKernelTypeStrArgsEntry.End(builder))

    listed = vector([operator(entry) for entry in sorted(_operators(tables), key=lambda entry: entry.OpId())])
    KernelTypeStrResolver.Start(builder)
    KernelTypeStrResolver.AddOpKernelTypeStrArgs(builder, listed)
    builder.Finish(KernelTypeStrResolver.End(builder))
    return bytes(builder.Output())


def _operators(tables: Any) -> list[Any]:
    return [tables.OpKernelTypeStrArgs(i) for i in range(tables.OpKernelTypeStrArgsLength())]


def _kinds(entry: Any) -> list[Any]:
    return [entry.KernelTypeStrArgs(i) for i in range(entry.KernelTypeStrArgsLength())]


def _spans(tables: Any, data: mmap) -> Iterator[Span]:
    """Everything that the tables consist of. What lies behind all of them belongs to the graph, written before them."""
    operators = _operators(tables)
    kinds = [kind for entry in operators for kind in _kinds(entry)]
    leaves = [kind.Args(i) for kind in kinds for i in range(kind.ArgsLength())]
    every = [table._tab.Pos for table in (tables, *operators, *kinds, *leaves)]
    for at in every:
        layout = _layout(data, at)
        yield at, struct.unpack_from("<H", data, layout[0] + 2)[0]
        if layout[0] < max(every):
            yield layout
    for table in (tables, *operators, *kinds):
        yield from _fields(table, data, text=table is not tables)


def _layout(data: mmap, at: int) -> Span:
    """The vtable of a table."""
    layout = at - struct.unpack_from("<i", data, at)[0]
    return layout, struct.unpack_from("<H", data, layout)[0]


def _fields(table: Any, data: mmap, text: bool) -> Iterator[Span]:
    """The vector of a table, and its name where it has one: the first of two fields."""
    for number, field in enumerate((4, 6) if text else (4,)):
        slot = table._tab.Offset(field)
        if slot:
            at = table._tab.Pos + slot
            at += struct.unpack_from("<I", data, at)[0]
            length = struct.unpack_from("<I", data, at)[0]
            yield at, 4 + (length + 1 if text and number == 0 else 4 * length)
