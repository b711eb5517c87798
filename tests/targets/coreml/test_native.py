"""What happens on a Mac, as far as it can be tested elsewhere: a planted coremltools stands for the real one.

The plumbing alone is tested: which calls are made, with which names and types, and what becomes of the answers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from decoders import fused, prompt
from support import program_of
from torch import Tensor, nn

from planish_passes import pipeline
from planish_passes.infra import run_passes
from planish_targets.contract import Artifact, Recipe, Unavailable, Wishes
from planish_targets.coreml import TARGET, mil, plan
from planish_targets.coreml.run import load, load_native
from planish_targets.serve import Call

pytest.importorskip("coremltools")

CONTEXT, CHUNK = 24, 4


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.two(torch.nn.functional.gelu(self.one(x))),)


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    program = program_of(Layers(), torch.zeros(2, 8))
    form = run_passes(program, (*pipeline.yardstick(torch.float16, "none"), *pipeline.for_target(frozenset(), {})))
    return TARGET.lower(form.program, tmp_path_factory.mktemp("layers"), Recipe("float"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planish_targets.coreml.target.CHUNKS", (1, CHUNK))
        full = run_passes(fused("llama").program, pipeline.yardstick(torch.float16, "none")).program
        order = (*pipeline.resident(CONTEXT), *pipeline.for_target(TARGET.capabilities.keeps, None))
        target = TARGET.adapted(Wishes(ane=True))  # with masks as inputs
        return target.lower(run_passes(full, order).program, tmp_path_factory.mktemp("llama"), Recipe("float"))


class PlantedModel:
    """As `coremltools.models.MLModel`, computed by the interpreter; takes what Core ML takes and nothing else."""

    def __init__(self, path: str, function_name: str | None = None) -> None:
        self.program = mil.load(Path(path), function_name)

    def get_spec(self) -> Any:
        ports = [SimpleNamespace(name=p.name) for p in self.program.inputs]
        return SimpleNamespace(description=SimpleNamespace(input=ports))

    def make_state(self) -> dict[str, Tensor]:
        return {}

    def predict(self, given: Mapping[str, Any], state: dict[str, Tensor] | None = None) -> dict[str, Any]:
        assert all(isinstance(v, np.ndarray) and v.dtype in (np.float32, np.int32) for v in given.values())
        assert set(given) == {p.name for p in self.program.inputs}
        feed = {name: torch.from_numpy(value) for name, value in given.items()}
        return {name: value.numpy() for name, value in self.program.run(feed, states=state).items()}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(models=SimpleNamespace(MLModel=PlantedModel))
    monkeypatch.setattr("planish_targets.coreml.run.importlib", SimpleNamespace(import_module=lambda name: fake))


def test_an_encoder_on_the_native_runtime(layers: Artifact, planted: None) -> None:
    call, given = Call(layers.path, layers.options, 1), {"x0": torch.randn(2, 8)}
    assert torch.equal(load_native(call)(given)["y0"], load(call)(given)["y0"])


def test_a_decoder_on_the_native_runtime_keeps_one_state_for_both_functions(llama: Artifact, planted: None) -> None:
    call = Call(llama.path, llama.options, 1)
    native, emulated, tokens, at = load_native(call), load(call), prompt(batch=1), 0
    for count in (9, 1, 1):
        feed = {"input_ids": tokens[:, at : at + count], "position_ids": torch.arange(at, at + count)[None]}
        assert torch.equal(native(feed)["logits"], emulated(feed)["logits"])
        at += count


# A package `coremltools` with the names that the real one has (read in coremltools 9.0), for the process of the plan
PLANTED = """
import json, os
from pathlib import Path
from types import SimpleNamespace as N

class ComputeUnit:
    ALL = "ALL"

class MLModel:
    def __init__(self, path, compute_units):
        assert Path(path).suffix == ".mlpackage" and compute_units == "ALL"
    def get_compiled_model_path(self):
        return "compiled.mlmodelc"

class MLNeuralEngineComputeDevice: pass
class MLGPUComputeDevice: pass
class MLCPUComputeDevice: pass
DEVICES = {"ane": MLNeuralEngineComputeDevice(), "gpu": MLGPUComputeDevice(), "cpu": MLCPUComputeDevice()}

def operation(entry):
    blocks = [N(operations=[operation(inner) for inner in entry.get("inside", [])])]
    return N(operator_name="ios18." + entry["name"], outputs=[N(name=entry["name"])], blocks=blocks, entry=entry)

class MLComputePlan:
    @classmethod
    def load_from_path(cls, path, compute_units):
        assert path == "compiled.mlmodelc" and compute_units == "ALL"
        told = json.loads(os.environ["PLANTED_PLAN"])
        if told == "crash":
            os.abort()
        functions = {n: N(block=N(operations=[operation(e) for e in es])) for n, es in told.items()}
        plan = cls()
        plan.model_structure = N(program=N(functions=functions))
        return plan
    def get_compute_device_usage_for_mlprogram_operation(self, operation):
        units = operation.entry.get("units")
        if not units:
            return None
        first, *_ = found = [DEVICES[u] for u in units]
        return N(preferred_compute_device=first, supported_compute_devices=found)
    def get_estimated_cost_for_mlprogram_operation(self, operation):
        return N(weight=0.25) if operation.entry.get("units") else None

models = N(MLModel=MLModel)
"""


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "planted" / "coremltools"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text(PLANTED + "import coremltools.models\n")
    (package / "models" / "__init__.py").write_text("from coremltools import MLModel\n")
    (package / "models" / "compute_plan.py").write_text("from coremltools import MLComputePlan\n")
    search = [str(package.parent), *(entry for entry in sys.path if entry)]
    monkeypatch.setenv("PYTHONPATH", ":".join(search))
    monkeypatch.setattr(
        "planish_targets.coreml.plan.sys", SimpleNamespace(platform="darwin", executable=sys.executable)
    )
    return package


def tell(monkeypatch: pytest.MonkeyPatch, told: object) -> None:
    monkeypatch.setenv("PLANTED_PLAN", json.dumps(told))


def test_the_plan_of_a_mac_becomes_the_placement(layers: Artifact, mac: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [o.output for o in mil.load(layers.path).operations()]
    first, last = (
        next(n for n in order if n.partition("__")[2].startswith("linear")) for order in (names, names[::-1])
    )
    gelu = next(n for n in names if "gelu" in n)
    entries = [
        {"name": first, "units": ["ane", "gpu", "cpu"], "inside": [{"name": gelu, "units": ["cpu", "gpu"]}]},
        {"name": last, "units": ["cpu"]},
        {"name": "a constant that planish does not list"},
    ]
    tell(monkeypatch, {"main": entries})
    placement = TARGET.placement(layers)
    assert placement.source.startswith("MLComputePlan, macOS"), plan.ask(layers.path)
    found = {n.node: (n.where, n.unit, n.reason) for n in placement.nodes}
    assert found[first] == ("accelerated", "Neural Engine", "")
    assert found[gelu] == ("fallback", "CPU", "Core ML prefers it to GPU")
    assert found[last] == ("fallback", "CPU", "nothing else computes it")
    others = set(found) - {first, gelu, last}
    assert others
    assert {found[name][0] for name in others} == {"unknown"}
    assert "another one may decide otherwise" in placement.source
    assert len(placement.advice) > 10
    cost = plan.ask(layers.path)
    assert isinstance(cost, plan.Plan)
    assert cost.functions["main"][first] == plan.Planned("Neural Engine", ("Neural Engine", "GPU", "CPU"), 0.25)


def test_a_plan_that_breaks_is_told_and_claims_nothing(
    layers: Artifact, mac: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(monkeypatch, "crash")
    found = plan.ask(layers.path)
    assert isinstance(found, Unavailable)
    assert "MLComputePlan broke (exit code -6)" in found.reason
    monkeypatch.setattr("planish_targets.coreml.advice.sys", SimpleNamespace(platform="darwin"))
    placement = TARGET.placement(layers)
    assert {n.where for n in placement.nodes} == {"unknown"}
    assert "exit code -6" in placement.source
    (mac / "__init__.py").write_text("import time; time.sleep(60)")
    late = plan.ask(layers.path, limit=2.0)
    assert isinstance(late, Unavailable)
    assert "did not answer within 2 s" in late.reason


def test_elsewhere_nobody_is_asked(layers: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planish_targets.coreml.plan.subprocess", None)
    monkeypatch.setattr("planish_targets.coreml.plan.sys", SimpleNamespace(platform="linux"))
    assert plan.ask(layers.path) == Unavailable("Core ML plans on macOS only")
