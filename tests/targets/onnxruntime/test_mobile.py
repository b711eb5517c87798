"""model.onnx and model.ort: one copy of the weights, the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from support import capture_family, feed

from planish_passes import pipeline
from planish_passes.infra import run_passes
from planish_passes.weights import WeightFormat
from planish_targets.contract import Artifact, Recipe
from planish_targets.onnxruntime import TARGET
from planish_targets.onnxruntime.kernel_tables import sort_kernel_tables


@pytest.fixture(scope="module", params=["float", "int8"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    recipe = Recipe(request.param, 8 if request.param == "int8" else 0)
    program = capture_family("bert")[0].program
    passes = (*pipeline.fuse(), *pipeline.quantise(WeightFormat(8) if recipe.bits else None))
    passes += pipeline.yardstick(TARGET.numerics(recipe).weights, TARGET.numerics(recipe).activations)
    form = run_passes(program, (*passes, *pipeline.for_target(TARGET.capabilities.keeps, None))).program
    return TARGET.lower(form, tmp_path_factory.mktemp("ort"), recipe)


def outputs(path: Path) -> np.ndarray:
    given = feed(capture_family("bert")[0].program)
    session = onnxruntime.InferenceSession(str(path))
    return session.run(None, {k: v.numpy() for k, v in given.items()})[0]


def test_both_files_compute_the_same(artifact: Artifact) -> None:
    assert np.array_equal(outputs(artifact.path), outputs(artifact.folder / "model.ort"))


def test_the_weights_are_stored_once(artifact: Artifact) -> None:
    names = {p.name for p in artifact.folder.iterdir()}
    assert names == {"model.onnx", "model.ort", "model.required_operators_and_types.config"}
    sizes = {p.name: p.stat().st_size for p in artifact.folder.iterdir()}
    assert sizes["model.onnx"] < sizes["model.ort"] + 64 * 1024


def test_damage_in_the_shared_bytes_shows_in_both(artifact: Artifact, tmp_path: Path) -> None:
    for file in artifact.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    ort = tmp_path / "model.ort"
    data = bytearray(ort.read_bytes())
    place = _largest_tensor(tmp_path)
    data[place : place + 64] = bytes(64)
    ort.write_bytes(data)
    assert not np.array_equal(outputs(tmp_path / "model.onnx"), outputs(artifact.path))
    assert np.array_equal(outputs(tmp_path / "model.onnx"), outputs(ort))


def _largest_tensor(folder: Path) -> int:
    import onnx

    held = onnx.load(folder / "model.onnx", load_external_data=False).graph.initializer
    shared = [{e.key: e.value for e in t.external_data} for t in held if "intermediate" in t.name and t.external_data]
    largest = max(shared, key=lambda e: int(e["length"]))
    return int(largest["offset"]) + int(largest["length"]) // 2


Kinds = list[tuple[bytes, list[tuple[int, int]]]]


def tables(path: Path) -> list[tuple[bytes, Kinds, int]]:
    """Operators of an .ort file with their kinds and arguments, and where each of them is in the file."""
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.InferenceSession import InferenceSession

    def kinds(entry: Any) -> Kinds:
        found = [entry.KernelTypeStrArgs(i) for i in range(entry.KernelTypeStrArgsLength())]
        arguments = [[k.Args(i) for i in range(k.ArgsLength())] for k in found]
        return [
            (k.KernelTypeStr(), [(a.ArgType(), a.Index()) for a in given])
            for k, given in zip(found, arguments, strict=True)
        ]

    found = InferenceSession.GetRootAs(path.read_bytes(), 0).KernelTypeStrResolver()
    entries = [found.OpKernelTypeStrArgs(i) for i in range(found.OpKernelTypeStrArgsLength())]
    return [(entry.OpId(), kinds(entry), entry._tab.Pos) for entry in entries]


def test_tables_of_kernels_are_sorted_and_say_the_same(artifact: Artifact, tmp_path: Path) -> None:
    """Written by the converter in an order that differs from process to process (kernel_tables.py)."""
    raw = tmp_path / "model.ort"
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.optimized_model_filepath = str(raw)
    onnxruntime.InferenceSession(str(artifact.path), options)
    written = tables(raw)
    data = raw.read_bytes()
    sort_kernel_tables(raw)
    again = tables(raw)
    assert [(op, sorted(kinds)) for op, kinds, _ in again] == sorted((op, sorted(kinds)) for op, kinds, _ in written)
    assert len(written) > 5
    before, after = ([at for _, _, at in listed] for listed in (written, again))
    assert before not in (sorted(before), sorted(before, reverse=True))
    assert after in (sorted(after), sorted(after, reverse=True))
    assert np.array_equal(outputs(raw), outputs(artifact.path))
    # In front of the new tables only the old ones and the way to them have changed.
    changed = [i for i, (a, b) in enumerate(zip(data, raw.read_bytes(), strict=False)) if a != b]
    assert max(changed) < 8192
    assert raw.read_bytes()[len(data) :].strip(b"\0")
