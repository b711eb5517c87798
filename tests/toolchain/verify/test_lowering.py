"""The lowering check when the run that shows inner values breaks, shows nothing, or was never asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import program_of
from torch import nn

from planish.verdict import Failed, Passed, Verdict
from planish.verify.cases import Case
from planish.verify.lowering import Execution, Lowered, check_lowering, edges
from planish_passes import pipeline
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret
from planish_passes.program import Program
from planish_passes.weights import WeightFormat
from planish_targets import registry, runner
from planish_targets.contract import Artifact, Evidence, Numerics, Recipe, Runner

CASE = Case("a", {"x0": torch.linspace(-1, 1, 8).reshape(2, 4)})
FLOAT = Recipe("float")


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return program_of(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), CASE.inputs["x0"])


def judged(program: Program, monkeypatch: pytest.MonkeyPatch, into: Path, *, breaks: bool, error: float) -> Verdict:
    return lowered(program, monkeypatch, into, breaks=breaks, error=error).verdict


def lowered(program: Program, monkeypatch: pytest.MonkeyPatch, into: Path, *, breaks: bool, error: float) -> Lowered:
    """The verdict on an artifact that is `error` off; asked for inner values, the runner `breaks` or shows none."""

    def answer(call: runner.Call) -> runner.Ran | runner.Broke:
        if breaks and call.taps:
            return runner.Broke("out of memory")
        outputs = {c: {k: t + error for k, t in interpret(program, given).items()} for c, given in call.cases.items()}
        return runner.Ran(outputs, {}, Evidence.EXECUTED)

    def run_all(command: Any, artifact: Artifact, calls: Any, **options: Any) -> list[runner.Ran | runner.Broke]:
        return [answer(call) for call in calls]

    monkeypatch.setattr("planish.verify.together.protocol.run_all", run_all)
    target = registry.find("reference")
    artifact = target.lower(program, into, FLOAT)
    return check_lowering(
        target, artifact, program, program, [CASE], recipe=FLOAT, numerics=Numerics(), execution=Execution()
    )


def test_a_runner_that_shows_no_inner_values_is_fine(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = lowered(program, monkeypatch, tmp_path, breaks=False, error=0.0)
    assert isinstance(found.verdict, Passed)
    assert "step" not in {m.name for m in found.verdict.metrics}
    assert [d.reason for d in found.drift] == ["this runner shows no inner values"]


def test_a_run_for_inner_values_that_breaks_is_told(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    verdict = judged(program, monkeypatch, tmp_path, breaks=True, error=0.0)
    assert isinstance(verdict, Failed)
    assert verdict.reason == "the run that shows inner values broke: out of memory; its steps were not checked"
    assert {m.name for m in verdict.metrics} >= {"relative", "noise"}


def test_it_is_told_beside_a_wrong_output(program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    verdict = judged(program, monkeypatch, tmp_path, breaks=True, error=0.1)
    assert isinstance(verdict, Failed)
    assert verdict.reason.startswith("the artifact computes something else than the program")
    assert "the run that shows inner values broke: out of memory" in verdict.reason


def test_an_execution_without_commands_uses_the_targets_own_runner(tmp_path: Path) -> None:
    target = registry.find("reference")
    artifact = Artifact("reference", tmp_path, "model.pt2")
    assert Execution().runner(target, artifact) == target.runner(artifact)
    other = Execution(commands={"reference": "ssh mac run"}).runner(target, artifact)
    assert isinstance(other, Runner)
    assert other.command == ["ssh", "mac", "run"]


def test_values_on_the_edge_of_two_codes_may_fall_to_either_side() -> None:
    torch.manual_seed(0)
    linear = run_passes(
        program_of(nn.Sequential(nn.Linear(32, 8)), torch.ones(2, 32)), pipeline.quantise(WeightFormat(8))
    ).program
    linear = run_passes(linear, pipeline.yardstick(torch.float32, "int8_token_symmetric")).program
    (node,) = [n.name for n in linear.graph.nodes if n.op == "call_function"]
    few = torch.randint(-8, 9, (2, 32)).float()
    few[:, 0] = 8.0  # 127 / 8 times 4 is 63.5
    case = Case("codes", {"x0": few * 0.37})
    on_edge = edges(linear, case, {}, {node})[node]
    assert on_edge > 2e-3
    between = edges(linear, Case("between", {"x0": torch.randn(2, 32)}), {}, {node})[node]
    assert between < 1e-4 < on_edge, "a wrong step is not excused where nothing lies on an edge"
    assert edges(linear, case, {}, {"another"}) == {}
