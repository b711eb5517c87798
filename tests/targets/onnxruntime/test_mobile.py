"""model.onnx and model.ort: one copy of the weights, the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from support import capture_family, feed

from planish_passes import pipeline
from planish_passes.infra import run_passes
from planish_passes.weights import WeightFormat
from planish_targets.contract import Artifact, Recipe
from planish_targets.onnxruntime import TARGET


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
