"""Names of ports, inner values that a runner shows, and numbers that fp16 must not touch."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import program_of
from torch import Tensor, nn

from planish_passes import pipeline
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret
from planish_passes.program import Program
from planish_targets.contract import Artifact, Recipe
from planish_targets.coreml import TARGET, mil
from planish_targets.coreml.run import load
from planish_targets.serve import Call

pytest.importorskip("coremltools")


class Buckets(nn.Module):
    """Distances in classes that grow with their logarithm, as T5 has them."""

    def forward(self, distances: Tensor) -> Tensor:
        return (torch.log(distances.float() / 16) / math.log(8) * 16).to(torch.int64)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x)))  # type: ignore[no-any-return]


def lowered(module: nn.Module, example: Tensor, into: Path, names: tuple[str, str]) -> tuple[Program, Artifact]:
    torch.manual_seed(0)
    order = (*pipeline.fuse(), *pipeline.yardstick(torch.float16, "none"))
    program = run_passes(program_of(module, example), order).program
    program = run_passes(program, pipeline.for_target(TARGET.capabilities.keeps, None)).program
    (given,), (told,) = program.inputs, program.outputs
    program = replace(program, inputs=(replace(given, name=names[0]),), outputs=(replace(told, name=names[1]),))
    return program, TARGET.lower(program, into, Recipe("float"))


DISTANCES = torch.arange(16, 2048)[None]


def test_indices_are_computed_in_fp32(tmp_path: Path) -> None:
    program, artifact = lowered(Buckets(), DISTANCES, tmp_path, ("x", "y"))
    found = mil.load(artifact.path).run({"x": DISTANCES}, precision="fp16")["y"]
    assert torch.equal(found.long(), interpret(program, {"x": DISTANCES})["y"])


def test_in_fp16_they_would_be_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planish_targets.coreml.lower.indices", lambda program: frozenset())
    program, artifact = lowered(Buckets(), DISTANCES, tmp_path, ("x", "y"))
    found = mil.load(artifact.path).run({"x": DISTANCES}, precision="fp16")["y"]
    assert not torch.equal(found.long(), interpret(program, {"x": DISTANCES})["y"])


def test_ports_keep_the_names_of_the_program(tmp_path: Path) -> None:
    program, artifact = lowered(Layers(), torch.zeros(2, 8), tmp_path, ("cross.0.key", "present.0.value"))
    given = {"cross.0.key": torch.randn(2, 8)}
    found = load(Call(artifact.path, artifact.options, 1))(given)
    assert list(found) == ["present.0.value"]
    assert torch.allclose(found["present.0.value"], interpret(program, given)["present.0.value"], atol=1e-5)


def test_inner_values_have_the_names_of_their_nodes(tmp_path: Path) -> None:
    program, artifact = lowered(Layers(), torch.zeros(2, 8), tmp_path, ("x", "y"))
    wanted: dict[str, Tensor] = {}
    given = {"x": torch.randn(2, 8)}
    interpret(program, given, tap=lambda node, value: wanted.update({node.name: value}))
    shown = load(Call(artifact.path, artifact.options, 1, ("linear", "linear_1")))(given)
    assert set(shown) == {"linear", "linear_1", "y"}
    for name in ("linear", "linear_1"):
        assert torch.allclose(shown[name], wanted[name], atol=1e-5)
