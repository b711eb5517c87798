"""Write a bundle: all of it, or nothing."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from planish.bundle import contents
from planish.bundle.codec import dump_manifest, json_bytes
from planish.bundle.files import fingerprint, walk
from planish.bundle.manifest import MANIFEST, PAGE, REPORT, FileEntry, Manifest
from planish.bundle.provenance import PROVENANCE, builder, provenance
from planish.bundle.read import Bundle
from planish.bundle.sbom import SBOM, sbom
from planish.bundle.sources import check_unchanged, companions, licenses
from planish.bundle.swap import check_replaceable, replacing
from planish.compiled import Compiled, TargetResult
from planish_passes.errors import PlanishError

_SUFFIX = ".planish"
_SPARE = 4 << 20  # bytes for reports, folders and rounding to blocks
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def write_bundle(compiled: Compiled, at: Path) -> Path:
    """Write the bundle `at`, or replace the bundle that is there.

    Killed at any moment, either the old bundle stands or the new one (see `planish.bundle.swap`). Artifact files are
    hard-linked where the file system can, so do not change them afterwards.

    Args:
        compiled: what to write.
        at: the folder, usually NAME.planish. Missing parents are made.

    Raises:
        PlanishError: `at` is something else than a bundle, there is no space, or no right to write.
    """
    at = at.absolute()
    with _explained(at):
        if os.path.lexists(at):
            check_replaceable(at)
        at.parent.mkdir(parents=True, exist_ok=True)
        _check_space(compiled, at)
        with replacing(at, check_replaceable) as folder:
            _fill(compiled, folder, at.name.removesuffix(_SUFFIX))
    return at


def _fill(compiled: Compiled, folder: Path, name: str) -> None:
    from planish.report import Subject, page, read_report  # it reads bundles, too

    tokenizer, small = companions(compiled.source)
    small |= licenses(compiled.source)
    for inside, path in small.items():
        _copy(path, folder / inside)
    check_unchanged(compiled.source, small, folder)
    for result in compiled.targets:
        if result.artifact is not None:
            for inside, path in walk(result.artifact.folder):
                _link(path, folder / contents.artifact_folder(result.target) / inside)
            _write_golden(result, folder / contents.golden_path(result.target))
    report = contents.report(compiled)
    (folder / REPORT).write_bytes(json_bytes(report))
    files = {inside: fingerprint(path) for inside, path in walk(folder)}
    made = contents.manifest(compiled, name, files, tokenizer)
    (folder / PAGE).write_bytes(page(Subject(made, read_report(report, REPORT)), sealed=False))
    files[PAGE] = fingerprint(folder / PAGE)
    if compiled.request.loaders:
        files |= _write_loaders(Bundle(folder, made), folder)
    made = made.model_copy(update={"files": dict(sorted(files.items()))})
    for inside, document in documents(made).items():
        (folder / inside).write_bytes(document)
        files[inside] = fingerprint(folder / inside)
    made = made.model_copy(update={"files": dict(sorted(files.items()))})
    (folder / MANIFEST).write_bytes(dump_manifest(made))


def _write_loaders(bundle: Bundle, folder: Path) -> dict[str, FileEntry]:
    from planish.loaders import render  # it reads bundles, too

    written = {f"{render.FOLDER}/{name}": data for name, data in render.loaders(bundle).items()}
    render.put(written, folder)
    return {name: fingerprint(folder / name) for name in written}


def documents(manifest: Manifest) -> dict[str, bytes]:
    """What is said of a bundle in the formats of others, from its manifest: file name -> contents."""
    return {SBOM: json_bytes(sbom(manifest)), PROVENANCE: json_bytes(provenance(manifest, builder()))}


def _copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, to)


def _link(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, to)
    except OSError:  # another file system, or one without links
        shutil.copyfile(path, to)


def _write_golden(result: TargetResult, to: Path) -> None:
    from safetensors.torch import save

    tensors = _golden(result.golden_inputs, "in") | _golden(result.golden_outputs, "out")
    if tensors:
        to.parent.mkdir(parents=True, exist_ok=True)
        # Not `save_file`: it reports a full disk as an error of its own kind, without the error number.
        to.write_bytes(save(tensors))


def _golden(cases: Mapping[str, Mapping[str, Tensor]], side: str) -> dict[str, Tensor]:
    if odd := [case for case in cases if "/" in case or not case]:
        raise ValueError(f"case {odd[0]!r} cannot be part of a tensor name")
    # A copy each: safetensors refuses tensors that share memory.
    return {
        f"{case}/{side}/{name}": tensor.detach().to("cpu", copy=True).contiguous()
        for case, tensors in cases.items()
        for name, tensor in tensors.items()
    }


def _check_space(compiled: Compiled, at: Path) -> None:
    needed = _SPARE + sum(path.stat().st_size for path in companions(compiled.source)[1].values())
    for result in compiled.targets:
        for cases in (result.golden_inputs, result.golden_outputs):
            needed += sum(t.nbytes for tensors in cases.values() for t in tensors.values())
        # Links need no space, but only work within one file system.
        if result.artifact is not None and result.artifact.folder.stat().st_dev != at.parent.stat().st_dev:
            needed += result.artifact.nbytes()
    free = shutil.disk_usage(at.parent).free
    if free < needed:
        raise PlanishError(
            f"There is not enough space: {needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free.",
            str(at.parent),
            "free some space, or choose another disk with --output",
        )


@contextmanager
def _explained(at: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        where = str(problem.filename or at)
        if problem.errno in _FULL:
            what, hint = "The disk is full.", "free some space, or choose another disk with --output"
        elif problem.errno in _FORBIDDEN:
            what, hint = "The bundle may not be written here.", "check the rights of the folder, or choose another one"
        else:
            what, hint = f"The bundle cannot be written: {problem.strerror or problem}.", "choose another folder"
        raise PlanishError(what, where, hint) from problem
