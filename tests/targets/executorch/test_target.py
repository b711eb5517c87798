"""Lowering, running, reading back and planted defects, on one small network with everything an encoder has."""

from __future__ import annotations

import contextlib
import dataclasses
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from pte_files import said
from support import program_of
from torch import Tensor, nn
from torch.nn import functional as F

from planish_passes import pipeline
from planish_passes.errors import PlanishError
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret
from planish_passes.program import Program
from planish_passes.quantise import quantized
from planish_passes.weights import QuantizedTensor, WeightFormat
from planish_targets import runner
from planish_targets.contract import Artifact, Evidence, Recipe, Unavailable
from planish_targets.executorch import TARGET, lower, target
from planish_targets.executorch.header import read_header
from planish_targets.executorch.pte import XNNPACK, open_pte

pytest.importorskip("executorch")

RECIPES = {"float": Recipe("float"), "int8": Recipe("int8", 8)}


class Encoder(nn.Module):
    """Embedding, masked attention, layer norm, both forms of GELU."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(50, 16)
        self.query, self.key, self.value = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids)
        q, k, v = (p(x).view(1, 6, 2, 8).transpose(1, 2) for p in (self.query, self.key, self.value))
        attended = torch.ops.planish.attention(q, k, v, mask.bool()[:, None, None], None, None, 8**-0.5, 0.0)
        x = self.norm(x + attended.reshape(1, 6, 16))
        return self.norm(x + self.down(F.gelu(F.gelu(self.up(x)), approximate="tanh")))  # type: ignore[no-any-return]


FEED = {"x0": torch.tensor([[3, 1, 4, 1, 5, 9]]), "x1": torch.tensor([[1, 1, 1, 1, 0, 0]])}


def prepared(module: nn.Module, examples: tuple[Tensor, ...], recipe: Recipe) -> tuple[Program, Program]:
    """Yardstick, and the form to lower."""
    numerics = TARGET.numerics(recipe)
    passes = (*pipeline.fuse(), *pipeline.quantise(WeightFormat(8) if recipe.bits else None))
    passes += pipeline.yardstick(numerics.weights, numerics.activations)
    yardstick = run_passes(program_of(module, *examples), passes).program
    rest = (*pipeline.for_target(TARGET.capabilities.keeps, None), *TARGET.passes(recipe))
    return yardstick, run_passes(yardstick, rest).program


@cache
def made(recipe: str) -> tuple[Program, Program, Artifact]:
    yardstick, program = prepared(Encoder(), tuple(FEED.values()), RECIPES[recipe])
    return yardstick, program, TARGET.lower(program, Path(mkdtemp(prefix="planish-test-")), RECIPES[recipe])


def changed(artifact: Artifact, into: Path, data: bytes) -> Artifact:
    """The same artifact with other bytes."""
    (into / artifact.entry).write_bytes(data)
    return dataclasses.replace(artifact, folder=into)


def run(artifact: Artifact) -> runner.Ran | runner.Broke:
    command = TARGET.runner(artifact)
    assert not isinstance(command, Unavailable)
    return runner.run(command, artifact, {"case": FEED})


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_runtime_computes_the_yardstick(recipe: str) -> None:
    yardstick, _, artifact = made(recipe)
    ran = run(artifact)
    assert isinstance(ran, runner.Ran), ran
    assert ran.evidence is Evidence.EXECUTED
    torch.testing.assert_close(ran.outputs["case"]["y0"], interpret(yardstick, FEED)["y0"], atol=1e-5, rtol=0)


def same(a: QuantizedTensor, b: QuantizedTensor) -> bool:
    return torch.equal(a.values, b.values) and torch.equal(a.scales, b.scales)


def test_integers_and_scales_come_back_bit_equal() -> None:
    yardstick, _, artifact = made("int8")
    found, truth = TARGET.read_weights(artifact), quantized(yardstick)
    assert len(truth) == 6
    assert found.keys() == truth.keys()
    assert all(same(found[name], truth[name]) for name in truth)


@pytest.mark.parametrize("name", ["up.weight", "words.weight"])
@pytest.mark.parametrize("part", ["values", "scales"])
def test_a_changed_byte_of_a_weight_is_seen(name: str, part: str, tmp_path: Path) -> None:
    """Linear weights lie in named segments, tables in the constant segment."""
    yardstick, _, artifact = made("int8")
    data, truth = bytearray(artifact.path.read_bytes()), quantized(yardstick)
    stored = getattr(truth[name], part).numpy().tobytes()
    assert data.count(stored) == 1
    data[data.index(stored) + 5] ^= 1
    found = TARGET.read_weights(changed(artifact, tmp_path, bytes(data)))
    assert [n for n in truth if not same(found[n], truth[n])] == [name]
    assert not torch.equal(getattr(found[name], part), getattr(truth[name], part))


def test_swapped_scales_are_seen(tmp_path: Path) -> None:
    yardstick, _, artifact = made("int8")
    data, truth = artifact.path.read_bytes(), quantized(yardstick)
    query, key = (truth[n].scales.numpy().tobytes() for n in ("query.weight", "key.weight"))
    data = data.replace(query, b"?" * len(query)).replace(key, query).replace(b"?" * len(query), key)
    found = TARGET.read_weights(changed(artifact, tmp_path, data))
    assert {n for n in truth if not same(found[n], truth[n])} == {"key.weight", "query.weight"}


class Tied(nn.Module):
    """One weight as table and as linear, as in masked language models."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(20, 16)

    def forward(self, ids: Tensor) -> Tensor:
        return torch.relu(F.linear(torch.tanh(self.words(ids)), self.words.weight))


def test_both_copies_of_a_tied_weight_are_read(tmp_path: Path) -> None:
    yardstick, program = prepared(Tied(), (torch.tensor([[1, 2, 3]]),), RECIPES["int8"])
    artifact = TARGET.lower(program, tmp_path, RECIPES["int8"])
    ((name, truth),) = quantized(yardstick).items()
    assert same(TARGET.read_weights(artifact)[name], truth)
    data, stored = bytearray(artifact.path.read_bytes()), truth.values.numpy().tobytes()
    assert data.count(stored) == 2
    data[data.index(stored) + 5] ^= 1
    artifact.path.write_bytes(data)
    with pytest.raises(PlanishError, match="copies of a quantised weight"):
        TARGET.read_weights(artifact)


def test_a_wrong_shape_is_told_with_names(tmp_path: Path) -> None:
    artifact = made("float")[2]
    command = TARGET.runner(artifact)
    assert not isinstance(command, Unavailable)
    wrong = {"x0": torch.ones(1, 9, dtype=torch.int64), "x1": torch.ones(1, 9, dtype=torch.int64)}
    broke = runner.run(command, artifact, {"case": wrong})
    assert isinstance(broke, runner.Broke)
    assert "x0 [1, 9]" in broke.reason


def test_a_truncated_file_is_refused_before_the_runtime_sees_it(tmp_path: Path) -> None:
    _, _, artifact = made("int8")
    short = changed(artifact, tmp_path, artifact.path.read_bytes()[:-100])
    broke = run(short)
    assert isinstance(broke, runner.Broke)
    assert "is cut off" in broke.reason
    for look in (TARGET.read_weights, TARGET.placement):
        with pytest.raises(PlanishError, match="is cut off"):
            look(short)


def test_garbage_is_refused(tmp_path: Path) -> None:
    _, _, artifact = made("int8")
    data = artifact.path.read_bytes()
    assert isinstance(broke := run(changed(artifact, tmp_path, b"\x5a" * len(data))), runner.Broke)
    assert "not a .pte file" in broke.reason
    program = read_header(artifact.path).program
    inside = changed(artifact, tmp_path, data[:48] + b"\x5a" * (program - 48) + data[program:])
    assert isinstance(broke := run(inside), runner.Broke)
    assert "the ExecuTorch runtime refuses" in broke.reason
    with pytest.raises(PlanishError, match="cannot be read"):
        TARGET.placement(inside)


def test_placement_names_operations_and_their_modules() -> None:
    placement = TARGET.placement(made("int8")[2])
    linears = [n for n in placement.nodes if n.op == "XNNFullyConnected"]
    assert {n.module for n in linears} == {"query", "key", "value", "up", "down"}
    assert all(n.where == "accelerated" and n.unit == XNNPACK for n in linears)
    norms = [n for n in placement.nodes if n.op == "aten::native_layer_norm"]
    assert [(n.where, n.module, n.reason) for n in norms] == [("fallback", "norm", "XNNPACK has no layer norm")] * 2
    assert sum(n.op == "XNNBatchMatrixMultiply" for n in placement.nodes) == 2


def test_a_bare_file_can_be_placed_but_not_named() -> None:
    artifact = made("int8")[2]
    bare = dataclasses.replace(artifact, options={})
    assert TARGET.placement(bare).share() == TARGET.placement(artifact).share()
    with pytest.raises(PlanishError, match="holds no weight names"):
        TARGET.read_weights(bare)
    assert isinstance(broke := run(bare), runner.Broke)
    assert "names no ports" in broke.reason


def test_inspect_counts_every_byte_of_a_weight_once() -> None:
    yardstick, _, artifact = made("int8")
    described = TARGET.inspect(artifact.path)
    assert described is not None
    assert described["dtypes"]["int8"] == sum(t.values.numel() for t in quantized(yardstick).values())  # type: ignore[index]
    assert described["inputs"] == ["int64[1, 6]", "int64[1, 6]"]
    assert described["planned_bytes"] == artifact.options["planned_bytes"] == open_pte(artifact.path).planned_bytes()
    assert TARGET.inspect(Path(__file__)) is None


def test_cheap_lowering_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, program, artifact = made("int8")
    monkeypatch.setattr(lower, "lean", contextlib.nullcontext)
    plain = TARGET.lower(program, tmp_path, RECIPES["int8"])
    assert said(plain.path) == said(artifact.path)


def test_lowering_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    TARGET.lower(made("float")[1], tmp_path, RECIPES["float"])
    assert capfd.readouterr().out == ""


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 1  # type: ignore[no-any-return]


class Inner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i0e(x)


def test_an_operator_without_a_kernel_is_refused_by_name(tmp_path: Path) -> None:
    _, program = prepared(Odd(), (torch.randn(2, 3),), RECIPES["float"])
    with pytest.raises(PlanishError) as caught:
        TARGET.lower(program, tmp_path, RECIPES["float"])
    assert "special_i0e" in caught.value.what
    assert "inner" in caught.value.where


def test_a_composite_that_no_pass_took_is_refused_by_name(tmp_path: Path) -> None:
    program = run_passes(made("int8")[0], pipeline.for_target(TARGET.capabilities.keeps, None)).program
    with pytest.raises(PlanishError) as caught:
        TARGET.lower(program, tmp_path, RECIPES["int8"])
    assert "planish.linear_q" in caught.value.what
    assert caught.value.where == "module query"


def test_without_executorch_there_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise target.PackageNotFoundError(name)

    _, program, artifact = made("float")
    monkeypatch.setattr(target, "version", absent)
    told = TARGET.runner(artifact)
    assert isinstance(told, Unavailable)
    assert "pip install 'planish[executorch]'" in told.reason
    with pytest.raises(PlanishError, match="executorch is not installed"):
        TARGET.lower(program, tmp_path, RECIPES["float"])
