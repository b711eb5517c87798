"""The DirectML target: what it writes, what it promises, and what happens when a promise is broken.

Artifacts run on the CPU provider in this process; the contract test runs them in the runner's own.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from support import capture_family, feed, program_of
from torch import Tensor, nn

from planish_passes import pipeline
from planish_passes.errors import PlanishError
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret
from planish_passes.program import Program
from planish_passes.quantise import quantized
from planish_passes.weights import WeightFormat
from planish_targets.contract import Artifact, Evidence, Recipe, Runner
from planish_targets.directml import TARGET, run
from planish_targets.serve import Call

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

FLOAT, INT8 = Recipe("float"), Recipe("int8", 8)


@dataclass(frozen=True)
class Made:
    shared: Program
    yardstick: Program
    artifact: Artifact


def lowered(shared: Program, recipe: Recipe, into: Path) -> Made:
    numerics = TARGET.numerics(recipe)
    yardstick = run_passes(shared, pipeline.yardstick(numerics.weights, numerics.activations)).program
    sizes = {a: {"batch": 1, "sequence": 16}[a] for a in shared.axes}
    order = (*pipeline.for_target(TARGET.capabilities.keeps, sizes), *TARGET.passes(recipe))
    return Made(shared, yardstick, TARGET.lower(run_passes(yardstick, order).program, into, recipe))


@cache
def family(name: str, recipe: Recipe) -> Made:
    """A tiny model of the family; callers that edit the files copy the folder."""
    program = capture_family(name)[0].program
    shared = run_passes(
        program, (*pipeline.fuse(), *pipeline.quantise(WeightFormat(8) if recipe.bits else None))
    ).program
    return lowered(shared, recipe, Path(mkdtemp(prefix="planish-test-")))


@pytest.fixture
def bert(tmp_path: Path) -> Artifact:
    """An int8 BERT whose files the test may damage."""
    made = family("bert", INT8).artifact
    shutil.copytree(made.folder, tmp_path / "artifact")
    return Artifact(made.target, tmp_path / "artifact", made.entry, made.options)


def edit(artifact: Artifact) -> Any:
    return onnx.load(artifact.path, load_external_data=False)


def execute(artifact: Artifact, given: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return run.open_artifact(Call(artifact.path, artifact.options, 1))(given)


# --- what it writes ---


TEXT = ("bert", "roberta", "albert", "mpnet", "deberta-v2", "modernbert")
IMAGE = ("vit", "convnext", "mobilenet-v2", "swin")


@pytest.mark.parametrize(
    ("name", "recipe"),
    [*((n, FLOAT) for n in TEXT + IMAGE), *((n, INT8) for n in ("bert", "deberta-v2", "modernbert", "swin"))],
    ids=lambda v: getattr(v, "name", v),
)
def test_families_compute_the_yardstick_and_stay_on_the_device(name: str, recipe: Recipe) -> None:
    made = family(name, recipe)
    placed = TARGET.placement(made.artifact)
    assert placed.violations == ()
    assert [n for n in placed.nodes if n.where != "accelerated"] == []
    assert made.artifact.notes == ()
    assert made.artifact.options["all_on_device"] is True
    given = feed(made.yardstick, batch=1)
    keep = given["attention_mask"].bool() if "attention_mask" in given else ...
    found, truth = execute(made.artifact, given), interpret(made.yardstick, given)
    for port in made.yardstick.outputs:
        assert found[port.name].dtype == torch.float32
        a, b = found[port.name][keep], truth[port.name][keep]
        assert float((a - b).norm() / b.norm()) < 2e-3


def test_int8_weights_take_one_byte_and_come_back_bit_equal() -> None:
    made = family("bert", INT8)
    found, truth = TARGET.read_weights(made.artifact), quantized(made.shared)
    assert found.keys() == truth.keys()
    for name, weight in truth.items():
        assert torch.equal(found[name].values, weight.values)
        assert torch.equal(found[name].scales, weight.scales)
    stored = {t.name: t.data_type for t in edit(made.artifact).graph.initializer}
    assert all(stored[f"{name}.q_values"] == onnx.TensorProto.INT8 for name in truth)
    assert "DequantizeLinear" not in {n.op_type for n in edit(made.artifact).graph.node}


def test_onnxruntime_folds_the_weights_when_it_loads_the_file(tmp_path: Path) -> None:
    """Basic optimisation is what every provider gets: no operator on a weight is left for the device."""
    import onnxruntime

    counts = {}
    for recipe in (FLOAT, INT8):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(tmp_path / f"{recipe.name}.onnx")
        made = family("bert", recipe).artifact
        onnxruntime.InferenceSession(str(made.path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(tmp_path / f"{recipe.name}.onnx", load_external_data=False).graph
        integers = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.INT8}
        counts[recipe] = len(graph.node)
        assert {n.op_type for n in graph.node if integers & set(n.input)} <= {"Gather"}
    assert counts[INT8] <= counts[FLOAT] + 3 * 2  # two tables are gathered by input ids, with Cast, Gather and Mul


def test_nodes_name_their_source_modules() -> None:
    modules = {n.module for n in TARGET.placement(family("bert", INT8).artifact).nodes}
    assert {"embeddings.LayerNorm", "encoder.layer.1.intermediate.dense"} <= modules


# --- planted defects ---


def test_a_norm_without_its_cast_is_a_violation(bert: Artifact) -> None:
    model = edit(bert)
    norm = next(n for n in model.graph.node if n.op_type == "LayerNormalization")
    cast = next(n for n in model.graph.node if n.output[0] == norm.input[0])
    assert cast.op_type == "Cast"
    norm.input[0] = cast.input[0]
    onnx.save(model, bert.path)
    assert any("DML015-fp16-norm" in v for v in TARGET.placement(bert).violations)


def test_allowzero_is_a_violation(bert: Artifact) -> None:
    model = edit(bert)
    reshape = next(n for n in model.graph.node if n.op_type == "Reshape")
    shape = next(t for t in model.graph.initializer if t.name == reshape.input[1])
    sizes = onnx.numpy_helper.to_array(shape).copy()
    sizes[0] = -1
    shape.CopyFrom(onnx.numpy_helper.from_array(sizes, shape.name))
    reshape.attribute.append(onnx.helper.make_attribute("allowzero", 1))
    onnx.save(model, bert.path)
    assert any("DML003-reshape-allowzero" in v for v in TARGET.placement(bert).violations)


def test_a_newer_opset_is_a_violation(bert: Artifact) -> None:
    model = edit(bert)
    next(o for o in model.opset_import if not o.domain).version = 22
    onnx.save(model, bert.path)
    assert any("DML001-opset" in v for v in TARGET.placement(bert).violations)


def test_a_short_weights_file_is_a_violation_and_unreadable(bert: Artifact) -> None:
    data = bert.folder / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-64])
    assert any("DML017-external-data" in v for v in TARGET.placement(bert).violations)


def test_a_flipped_integer_is_read_back(bert: Artifact) -> None:
    name = "encoder.layer.0.intermediate.dense.weight"
    truth = TARGET.read_weights(bert)[name].values
    tensor = next(t for t in edit(bert).graph.initializer if t.name == f"{name}.q_values")
    offset = next(int(e.value) for e in tensor.external_data if e.key == "offset")
    data = bytearray((bert.folder / "model.onnx.data").read_bytes())
    data[offset + 5] ^= 1
    (bert.folder / "model.onnx.data").write_bytes(data)
    found = TARGET.read_weights(bert)[name].values
    assert int((found != truth).sum()) == 1
    assert found.flatten()[5] == truth.flatten()[5] ^ 1


# --- refusals and reports ---


def test_what_has_no_kernel_is_reported_and_the_cpu_may_take_it(tmp_path: Path) -> None:
    class Put(nn.Module):
        def forward(self, x: Tensor, at: Tensor) -> Tensor:
            return torch.index_put(torch.relu(x), (at,), torch.ones(2, 3)) * 2

    program = program_of(Put(), torch.randn(4, 3), torch.tensor([0, 2]))
    made = lowered(program, FLOAT, tmp_path)
    placed = TARGET.placement(made.artifact)
    away = [n for n in placed.nodes if n.where == "fallback"]
    assert placed.violations == ()
    assert [n.op for n in away] == ["ScatterND"]
    assert away[0].unit == "CPUExecutionProvider"
    assert "DML002" in away[0].reason
    assert "ScatterND" in made.artifact.notes[0]
    assert made.artifact.options["all_on_device"] is False
    given = {"x0": torch.randn(4, 3), "x1": torch.tensor([1, 3])}
    torch.testing.assert_close(
        execute(made.artifact, given)["y0"], interpret(program, given)["y0"], atol=4e-3, rtol=2e-3
    )


def test_an_operator_without_onnx_form_is_refused_by_name(tmp_path: Path) -> None:
    class Spectrum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.eigvalsh(x)

    with pytest.raises(PlanishError, match=r"eigvalsh|eigh"):
        lowered(program_of(Spectrum(), torch.eye(3)), FLOAT, tmp_path)


def test_a_width_without_a_form_is_refused_by_name(tmp_path: Path) -> None:
    program = capture_family("bert")[0].program
    shared = run_passes(program, (*pipeline.fuse(), *pipeline.quantise(WeightFormat(2, 16)))).program
    with pytest.raises(PlanishError, match="2 bits in groups of 16") as refusal:
        lowered(shared, INT8, tmp_path)
    assert "embeddings" in refusal.value.where


def test_a_file_that_breaks_a_rule_is_not_handed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted defect: a lowering that forgets its float32 islands."""
    monkeypatch.setattr("planish_targets.directml.half.full_precision", lambda *_: set())
    with pytest.raises(PlanishError, match="LayerNormalization") as refusal:
        lowered(family("bert", FLOAT).shared, FLOAT, tmp_path)
    assert "embeddings.LayerNorm" in refusal.value.where


# --- runners ---


def test_elsewhere_the_cpu_stands_in_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    runner = TARGET.runner(family("bert", INT8).artifact)
    assert isinstance(runner, Runner)
    assert runner.evidence is Evidence.EMULATED
    assert "in the place of DirectML" in runner.device


@pytest.mark.parametrize("whole", [True, False])
def test_on_windows_the_device_runs_alone_when_everything_is_on_it(
    monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    seen: list[tuple[list[str], Mapping[str, str]]] = []
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(run, "version", lambda package: "1.24.4")
    monkeypatch.setattr(run, "load", lambda call, providers, settings: seen.append((providers, settings)))
    runner = TARGET.runner(family("bert", INT8).artifact)
    assert isinstance(runner, Runner)
    assert runner.evidence is Evidence.EXECUTED
    run.open_artifact(Call(Path("model.onnx"), {"all_on_device": whole}, 1))
    alone = (["DmlExecutionProvider"], {"session.disable_cpu_ep_fallback": "1"})
    assert seen == [alone if whole else (["DmlExecutionProvider", "CPUExecutionProvider"], {})]


def test_a_missing_provider_and_a_missing_input_are_named(bert: Artifact) -> None:
    from planish_targets.onnx_graph.session import load

    with pytest.raises(PlanishError, match="no DmlExecutionProvider"):
        load(Call(bert.path, {}, 1), ["DmlExecutionProvider"])
    with pytest.raises(PlanishError, match="no value for input 'attention_mask'"):
        execute(bert, {"input_ids": torch.ones(1, 16, dtype=torch.int64)})
    bert.path.write_bytes(b"no model")
    with pytest.raises(PlanishError, match="refuses the file"):
        execute(bert, {})
