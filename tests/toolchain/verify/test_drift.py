"""Drift along the layers: equal programs have none, a spoilt weight shows from its own layer on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support import program_of
from torch import Tensor, nn

from planish.verdict import Layer
from planish.verify.cases import Case
from planish.verify.diverge import Layers, apart, module_outputs
from planish.verify.drift import from_model
from planish.verify.together import alone
from planish_passes.interpret import interpret
from planish_passes.program import Program

CASE = Case("a", {"x0": torch.linspace(-1, 1, 8).reshape(2, 4)})


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x0: Tensor, return_dict: bool = True) -> Tensor:
        return self.second(self.first(x0))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Two()


@pytest.fixture(scope="module")
def program(model: nn.Module) -> Program:
    return program_of(model, CASE.inputs["x0"])


def spoilt(program: Program, name: str) -> Program:
    spec = program.weights.spec(name)
    return replace(program, weights=program.weights.derive(name, (name,), lambda t: t * 1.5, spec))


def by_module(layers: tuple[Layer, ...]) -> dict[str, float]:
    return {layer.module: layer.typical for layer in layers}


def test_an_equal_program_does_not_drift(program: Program, model: nn.Module) -> None:
    found = alone(from_model(program, module_outputs(model, CASE.inputs), CASE))
    assert (found.of, found.case, found.reason) == ("quantisation", "a", "")
    assert [layer.module for layer in found.layers] == ["first", "second"]
    assert all(layer.largest < 1e-6 for layer in found.layers)


def test_a_spoilt_layer_shows_from_there_on(program: Program, model: nn.Module) -> None:
    steps = from_model(spoilt(program, "second.weight"), module_outputs(model, CASE.inputs), CASE)
    found = by_module(alone(steps).layers)
    assert found["first"] < 1e-6
    assert found["second"] > 0.1


def test_a_model_that_a_task_wrapped_is_looked_through(program: Program, model: nn.Module) -> None:
    truth = {f"model.{path}": values for path, values in module_outputs(model, CASE.inputs).items()}
    assert len(alone(from_model(program, truth, CASE)).layers) == 2


def test_no_counterpart_is_told(program: Program) -> None:
    found = alone(from_model(program, {"other": [torch.zeros(2, 4)]}, CASE))
    assert found.layers == ()
    assert "counterpart" in found.reason


def test_errors_add_up_in_the_drift_and_not_in_the_steps(program: Program) -> None:
    shown: dict[str, Tensor] = {}

    def tap(node: Any, value: Tensor) -> None:
        shown[node.name] = value

    interpret(spoilt(program, "first.weight"), CASE.inputs, tap=tap)
    found = Layers(CASE, shown), Layers(CASE, shown)
    interpret(program, CASE.inputs, tap=found[0].tap, forced=shown)
    interpret(program, CASE.inputs, tap=found[1].tap)
    steps, drift = (by_module(tuple(layers.found)) for layers in found)
    assert steps["first"] > 0.1
    assert steps["second"] < 1e-6  # given what it was given, it is right
    assert drift["second"] > 0.05


def test_sizes_of_a_difference(program: Program) -> None:
    node = next(n for n in program.graph.nodes if n.op == "call_function")
    truth = torch.tensor([3.0, 4.0])
    layer = apart(node, torch.tensor([3.0, 3.0]), truth)
    assert layer.largest == pytest.approx(1 / 4)
    assert layer.typical == pytest.approx(1 / 5)
    lost = apart(node, torch.tensor([3.0, float("nan")]), truth)
    assert (lost.largest, lost.typical) == (float("inf"), float("inf"))
