"""One .ptd file for several programs of a model: what more than one of them reads is stored once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from planish_targets.contract import Artifact
from planish_targets.executorch.attached import recorded_data
from planish_targets.executorch.ptd import SUFFIX, DataFile, layouts, open_ptd
from planish_targets.quiet import quiet

WORTH = 0.01  # share of all bytes that must be saved


def share(artifacts: Sequence[Artifact]) -> tuple[Artifact, ...]:
    """The artifacts over one data file, under one name in each folder (a hard link where the disk has them); over their
    own when little would be saved, or when a name stands for two different constants, which a note then tells.

    Args:
        artifacts: of one model, each with its .ptd.
    """
    paths = [a.path.with_suffix(SUFFIX) for a in artifacts]
    if len(paths) < 2 or not all(p.is_file() for p in paths):
        return tuple(artifacts)
    files = [open_ptd(p) for p in paths]
    sizes = [p.stat().st_size for p in paths]
    merged = _merged(files)
    if isinstance(merged, str):
        told = f"{merged} is not the same in all programs of the model: each keeps a file of weights of its own"
        return tuple(replace(a, notes=(*a.notes, told)) for a in artifacts)
    one = paths[0].with_suffix(".new")
    with one.open("wb") as out:
        merged.write_to_file(out)
    saved = sum(sizes) - one.stat().st_size
    if saved < WORTH * sum(sizes):
        one.unlink()
        return tuple(artifacts)
    os.replace(one, paths[0])
    for path in paths[1:]:
        path.unlink()
        _link(paths[0], path)
    told = f"{paths[0].name} serves all programs of the model: ship it once; apart they would be {saved:,} bytes more"
    return tuple(replace(a, options={**a.options, **recorded_data(a.path)}, notes=(*a.notes, told)) for a in artifacts)


def _merged(files: Sequence[DataFile]) -> Any:
    """The serialised union of their constants; or the name that stands for two different ones."""
    with quiet():
        from executorch.exir._serialize._named_data_store import NamedDataStore
        from executorch.extension.flat_tensor.serialize.serialize import DataPayload, FlatTensorSerializer

    store, name = NamedDataStore(), "merged"
    for file in files:
        for key, layout in layouts(file.path).items():
            try:
                store.add_named_data(key, file.named(key), tensor_layout=layout, external_tag=name)
            except ValueError:  # the same name with other bytes
                return key
    found = store.get_named_data_store_output()
    return FlatTensorSerializer().serialize(DataPayload(found.buffers, found.external_data.get(name, {})))


def _link(source: Path, to: Path) -> None:
    try:
        os.link(source, to)
    except OSError:  # a file system without links
        shutil.copyfile(source, to)
