"""What holds for every target: lower, run, place, read back, describe, refuse."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from support import capture_family, feed, target_names

from planish_passes import pipeline
from planish_passes.errors import PlanishError
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret
from planish_passes.program import Program, module_path, op_name
from planish_passes.quantise import quantized
from planish_passes.weights import WeightFormat
from planish_targets import registry, runner
from planish_targets.contract import Artifact, Evidence, Recipe, Runner, Unavailable

NAMES = target_names(variants=True)
RECIPES = {"float": Recipe("float"), "int8": Recipe("int8", 8)}


@dataclass(frozen=True)
class Made:
    artifact: Artifact
    yardstick: Program
    quantised: Program


@cache
def folder() -> Path:
    import tempfile

    return Path(tempfile.mkdtemp(prefix="planish-test-"))


@cache
def made(name: str, recipe: str) -> Made:
    """A tiny BERT as an artifact of the target (batch 1, sequence 16 where shapes are fixed)."""
    target = registry.find(name)
    program = capture_family("bert")[0].program
    shared = (*pipeline.fuse(), *pipeline.quantise(WeightFormat(8) if RECIPES[recipe].bits else None))
    quantised = run_passes(program, shared).program
    numerics = target.numerics(RECIPES[recipe])
    yardstick = run_passes(quantised, pipeline.yardstick(numerics.weights, numerics.activations)).program
    sizes = None if target.capabilities.dynamic_shapes else {"batch": 1, "sequence": 16}
    passes = (*pipeline.for_target(target.capabilities.keeps, sizes), *target.passes(RECIPES[recipe]))
    into = folder() / registry.folder(name) / recipe
    into.mkdir(parents=True)
    artifact = target.lower(run_passes(yardstick, passes).program, into, RECIPES[recipe])
    return Made(artifact, yardstick, quantised)


def encodes(name: str, recipe: str) -> bool:
    return RECIPES[recipe].bits in {0, *registry.find(name).capabilities.bits}


EVERY = [
    pytest.param(*target.values, recipe, marks=target.marks)
    for target in NAMES
    for recipe in RECIPES
    if encodes(*target.values, recipe)
]


@pytest.mark.parametrize(("name", "recipe"), EVERY)
def test_the_artifact_computes_the_yardstick(name: str, recipe: str) -> None:
    it, target = made(name, recipe), registry.find(name)
    command = target.runner(it.artifact)
    if name in registry.variants() and isinstance(command, Unavailable):
        assert command.reason
        return  # compile-only
    assert isinstance(command, Runner)
    given = feed(it.yardstick, batch=1, padding=4)
    ran = runner.run(command, it.artifact, {"case": given}, repeat=2)
    assert isinstance(ran, runner.Ran), ran
    assert ran.evidence in (Evidence.EXECUTED, Evidence.EMULATED)
    assert len(ran.seconds("case")) == 2
    keep = given["attention_mask"].bool()
    found = ran.outputs["case"]["last_hidden_state"].float()[keep]
    truth = interpret(it.yardstick, given)["last_hidden_state"][keep]
    half = (command.compute or target.numerics(RECIPES[recipe]).compute) == torch.float16
    limit = 2e-2 if half or recipe == "int8" else 2e-5
    assert float((found - truth).abs().max() / truth.abs().max()) < limit


@pytest.mark.parametrize("name", [n for n in NAMES if encodes(*n.values, "int8")])
def test_integers_and_scales_are_bit_equal_in_every_artifact(name: str) -> None:
    it = made(name, "int8")
    found, truth = registry.find(name).read_weights(it.artifact), quantized(it.quantised)
    assert set(found) == set(truth)
    for weight, tensor in truth.items():
        assert torch.equal(found[weight].values, tensor.values), weight
        assert torch.equal(found[weight].scales.float().reshape(tensor.scales.shape), tensor.scales), weight


@pytest.mark.parametrize(("name", "recipe"), EVERY)
def test_every_file_states_the_epsilon_of_every_norm_with_its_module(name: str, recipe: str) -> None:
    it = made(name, recipe)
    files = registry.find(name).read_attributes(it.artifact)
    assert not isinstance(files, Unavailable)
    assert artifact_files(it.artifact) <= set(files)
    norms = sorted(
        module_path(n) for n in it.yardstick.graph.nodes if n.op == "call_function" and op_name(n) == "aten.layer_norm"
    )
    assert len(norms) == 5
    for stated in files.values():
        assert sorted(a.module for a in stated) == norms
        for a in stated:
            # float16 holds nothing below 2**-24
            assert a.value == (2.0**-24 if a.dtype == torch.float16 else float(torch.tensor(1e-12, dtype=a.dtype)))


def artifact_files(artifact: Artifact) -> set[str]:
    """Everything in the folder that a runtime can open."""
    forms = (".onnx", ".ort", ".pte", ".pt2", ".mlpackage", ".aimodel")
    return {p.name for p in artifact.folder.iterdir() if p.suffix in forms}


@pytest.mark.parametrize("name", NAMES)
def test_placement_names_every_operation(name: str) -> None:
    it = made(name, "float")
    placement = registry.find(name).placement(it.artifact)
    assert placement.nodes
    assert placement.source
    assert not placement.violations
    assert {n.where for n in placement.nodes} <= {"accelerated", "fallback", "unknown"}
    assert all(n.reason for n in placement.nodes if n.where != "accelerated")


@pytest.mark.parametrize("name", NAMES)
def test_a_bare_artifact_can_be_described_by_one_target(name: str) -> None:
    path = made(name, "int8" if encodes(name, "int8") else "float").artifact.path
    told = [t for t in registry.targets().values() if t.inspect(path) is not None]
    assert len(told) == 1
    described = told[0].inspect(path)
    assert described is not None
    assert {"format", "ops", "dtypes", "inputs", "outputs", "bytes"} <= set(described)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_artifact_is_a_verdict_and_not_a_crash(name: str, tmp_path: Path) -> None:
    it = made(name, "float")
    gone = Artifact(name, tmp_path, it.artifact.entry, it.artifact.options)
    command = registry.find(name).runner(gone)
    if isinstance(command, Unavailable):
        assert command.reason
        return
    broke = runner.run(command, gone, {"case": feed(it.yardstick, batch=1)})
    assert isinstance(broke, runner.Broke)
    assert broke.reason


def test_an_unknown_target_is_refused_with_the_nearest() -> None:
    with pytest.raises(PlanishError) as caught:
        registry.find("onnxruntim")
    assert "did you mean 'onnxruntime'" in caught.value.hint
