"""Epsilons read back from written files: equal as they are, red for each planted change, told where they are gone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from support import program_of, target_names
from torch import Tensor, nn

from planish.verdict import Failed, NotRun, Passed, Verdict
from planish.verify.attributes import as_stored, check_attributes, program_epsilons
from planish_passes import pipeline
from planish_passes.errors import PlanishError
from planish_passes.infra import run_passes
from planish_passes.program import Program
from planish_targets import registry
from planish_targets.contract import Artifact, Attribute, Numerics, Recipe, Unavailable

NAMES = target_names()
FLOAT = Recipe("float")


class Rms(nn.Module):
    """Written out, as language models do."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Net(nn.Module):
    """One normalisation of each form: an operator, one that targets take apart, one that is written out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.group, self.rms = nn.LayerNorm(8, eps=1e-12), nn.GroupNorm(2, 4, eps=2e-5), Rms()
        self.second = nn.LayerNorm(8, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.second(self.rms(self.group(self.layer(x)))))


def form_of(name: str, module: nn.Module) -> Program:
    target = registry.find(name)
    numerics = target.numerics(FLOAT)
    order = (*pipeline.fuse(), *pipeline.yardstick(numerics.weights, numerics.activations))
    order += (*pipeline.for_target(target.capabilities.keeps, None), *target.passes(FLOAT))
    return run_passes(program_of(module, torch.rand(1, 4, 8, 8)), order).program


def lowered(name: str, program: Program) -> Artifact:
    return registry.find(name).lower(program, Path(mkdtemp(prefix="planish-test-")), FLOAT)


@cache
def made(name: str) -> tuple[Program, Artifact]:
    form = form_of(name, Net())
    return form, lowered(name, form)


def check(name: str, artifact: Artifact, form: Program) -> Verdict:
    target = registry.find(name)
    return check_attributes(target, artifact, form, target.numerics(FLOAT))


def with_epsilon(form: Program, module: str, value: float) -> Program:
    """The program with another epsilon at one module."""
    (at,) = (e for e in program_epsilons(form) if e.module == module)
    changed = form.copy()
    node = next(n for n in changed.graph.nodes if n.name == at.node)
    node.args = tuple(value if a == at.value and isinstance(a, float) else a for a in node.args)
    changed.exported.graph_module.recompile()
    return changed


@pytest.mark.parametrize("name", NAMES)
def test_what_was_lowered_is_what_the_files_say(name: str) -> None:
    form, artifact = made(name)
    verdict = check(name, artifact, form)
    assert isinstance(verdict, Passed), verdict
    files = 2 if name == "onnxruntime" else 1
    assert {m.name: m.value for m in verdict.metrics} == {"equal_epsilons": 4.0 * files}


@pytest.mark.parametrize(("module", "value"), [("layer", 1e-5), ("group", 1e-5), ("rms", 1e-5)])
@pytest.mark.parametrize("name", NAMES)
def test_another_epsilon_is_named(name: str, module: str, value: float) -> None:
    """`second` has the epsilon that `layer` lost: it must not be taken for it."""
    form = made(name)[0]
    verdict = check(name, lowered(name, with_epsilon(form, module, value)), form)
    assert isinstance(verdict, Failed), verdict
    assert verdict.diverged is not None
    assert verdict.diverged.module == module
    said = next(e.value for e in program_epsilons(form) if e.module == module)
    assert verdict.reason.startswith(f"module {module}: {verdict.diverged.op}")
    assert f"has epsilon {said:g}" in verdict.reason
    assert any(f"says {v:g} (" in verdict.reason for v in (value, as_stored(value, torch.float16)))


# -- edited files -----------------------------------------------------------------------------------------------------


def replaced(artifact: Artifact, file: str, old: bytes, new: bytes, into: Path) -> Artifact:
    shutil.copytree(artifact.folder, into, dirs_exist_ok=True)
    data = (into / file).read_bytes()
    assert data.count(old) == 1
    (into / file).write_bytes(data.replace(old, new))
    return replace(artifact, folder=into)


def raw(value: float, dtype: torch.dtype) -> bytes:
    return bytes(torch.tensor(value, dtype=dtype).numpy().tobytes())


@pytest.mark.parametrize(
    ("name", "file", "dtype"),
    [
        ("onnxruntime", "model.onnx", torch.float32),
        ("onnxruntime", "model.ort", torch.float32),
        ("directml", "model.onnx", torch.float32),
        ("executorch", "model.pte", torch.float64),
    ],
)
def test_edited_bytes_are_seen(name: str, file: str, dtype: torch.dtype, tmp_path: Path) -> None:
    form, artifact = made(name)
    edited = replaced(artifact, file, raw(2e-5, dtype), raw(3e-5, dtype), tmp_path)
    verdict = check(name, edited, form)
    assert isinstance(verdict, Failed)
    assert "module group: aten.group_norm" in verdict.reason
    assert f"{file} says 3e-05" in verdict.reason


@pytest.mark.parametrize("missing", ["model.onnx", "model.ort"])
def test_a_missing_file_fails_the_check(missing: str, tmp_path: Path) -> None:
    form, artifact = made("onnxruntime")
    shutil.copytree(artifact.folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / missing).unlink()
    verdict = check("onnxruntime", replace(artifact, folder=tmp_path), form)
    assert isinstance(verdict, Failed)
    assert f"there is no {missing}" in verdict.reason


def test_garbage_fails_the_check(tmp_path: Path) -> None:
    form, artifact = made("directml")
    (tmp_path / artifact.entry).write_bytes(b"\xff" * 100)
    verdict = check("directml", replace(artifact, folder=tmp_path), form)
    assert isinstance(verdict, Failed)
    assert "not a readable ONNX file" in verdict.reason


def test_a_damaged_file_fails_the_check(tmp_path: Path) -> None:
    form, artifact = made("executorch")
    (tmp_path / artifact.entry).write_bytes(artifact.path.read_bytes()[:-100])
    verdict = check("executorch", replace(artifact, folder=tmp_path), form)
    assert isinstance(verdict, Failed)
    assert "is cut off" in verdict.reason


# -- what may be gone -------------------------------------------------------------------------------------------------


class Table(nn.Module):
    """A normalised table, as in DeBERTa, and a batch norm: both epsilons act on weights alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.rand(1, 4, 8, 8))
        self.norm, self.batch = nn.LayerNorm(8, eps=7e-6), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.batch(torch.relu(x)) + self.norm(self.table)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("name", "gone"), [("coreml", "norm"), ("executorch", "batch")])
def test_what_is_folded_into_weights_is_told(name: str, gone: str) -> None:
    form = form_of(name, Table())
    verdict = check(name, lowered(name, form), form)
    assert isinstance(verdict, Passed), verdict
    assert [(m.name, m.value, m.case) for m in verdict.metrics] == [
        ("equal_epsilons", 1.0, ""),
        ("absent_epsilons", 1.0, gone),
    ]


@dataclass(frozen=True)
class Says:
    """A target whose files say what a test wants."""

    said: Mapping[str, Sequence[Attribute]] | Unavailable | PlanishError

    def read_attributes(self, artifact: Artifact) -> Any:
        if isinstance(self.said, PlanishError):
            raise self.said
        return self.said


def judged(said: Any, form: Program, compute: torch.dtype = torch.float32) -> Verdict:
    target: Any = Says(said)
    return check_attributes(target, Artifact("t", Path(), ""), form, Numerics(compute=compute))


def stated(*values: tuple[str, float], dtype: torch.dtype = torch.float64) -> dict[str, list[Attribute]]:
    return {"file": [Attribute("epsilon", value, dtype, "Norm", module) for module, value in values]}


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.LayerNorm(8, eps=1e-5), nn.LayerNorm(8, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))  # type: ignore[no-any-return]


def plain() -> Program:
    return form_of("reference", Plain())


def test_names_bind() -> None:
    assert isinstance(judged(stated(("a", 1e-5), ("b", 1e-6)), plain()), Passed)
    swapped = judged(stated(("a", 1e-6), ("b", 1e-5)), plain())
    assert isinstance(swapped, Failed)
    assert swapped.reason.startswith("module a: ")


def test_nameless_numbers_are_compared_as_a_collection() -> None:
    assert isinstance(judged(stated(("", 1e-6), ("", 1e-5)), plain()), Passed)
    verdict = judged(stated(("", 1e-6), ("", 2e-5)), plain())
    assert isinstance(verdict, Failed)
    assert "says 2e-05 (Norm, float64) for a normalisation that it does not name" in verdict.reason


def test_a_missing_one_fails_and_one_too_many_is_told() -> None:
    missing = judged(stated(("b", 1e-6)), plain())
    assert isinstance(missing, Failed)
    assert missing.reason == "module a: aten.layer_norm (layer_norm) has epsilon 1e-05, file states none"
    more = judged(stated(("a", 1e-5), ("b", 1e-6), ("", 1.0)), plain())
    assert isinstance(more, Passed)
    assert ("other_epsilons", 1.0) in [(m.name, m.value) for m in more.metrics]


def test_every_file_must_state_them() -> None:
    verdict = judged({**stated(("a", 1e-5), ("b", 1e-6)), "second": []}, plain())
    assert isinstance(verdict, Failed)
    assert "second states none" in verdict.reason


def test_float16_is_a_rounding_for_targets_that_compute_in_it() -> None:
    halves = [(m, as_stored(e, torch.float16)) for m, e in (("a", 1e-5), ("b", 1e-6))]
    said = stated(*halves, dtype=torch.float16)
    assert isinstance(judged(said, plain(), torch.float16), Passed)
    assert isinstance(judged(said, plain()), Failed)


class Twice(nn.Module):
    """Two norms without weights of the same value, which a target may compute once."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Rms(), Rms()

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + torch.tanh(self.b(x))


def test_equal_computations_may_be_shared_in_the_file() -> None:
    form = form_of("onnxruntime", Twice())
    verdict = judged(stated(("a", 1e-6)), form)
    assert isinstance(verdict, Passed), verdict
    assert ("absent_epsilons", 1.0, "b") in [(m.name, m.value, m.case) for m in verdict.metrics]
    assert isinstance(judged(stated(("a", 1e-6), ("b", 1e-5)), form), Failed)
    assert isinstance(judged(stated(), form), Failed)


def test_what_cannot_be_read_is_not_run_and_says_why() -> None:
    assert judged(Unavailable("only XNNPACK's payloads"), plain()) == NotRun("attributes", "only XNNPACK's payloads")
    assert isinstance(judged({}, plain()), NotRun)
    damaged = judged(PlanishError("cut off", "file", "again"), plain())
    assert isinstance(damaged, Failed)
    assert "cut off" in damaged.reason


def test_nothing_is_claimed_when_every_epsilon_is_folded() -> None:
    class Batch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.batch = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.batch(torch.relu(x))  # type: ignore[no-any-return]

    verdict = judged(stated(), form_of("executorch", Batch()))
    assert verdict == NotRun("attributes", "every epsilon is folded into weights: batch")


@pytest.mark.parametrize(
    ("value", "dtype", "stored"),
    [
        (1e-12, torch.float64, 1e-12),
        (1e-12, torch.float32, 9.999999960041972e-13),
        (1e-12, torch.float16, 2.0**-24),
        (1e-5, torch.float16, 1.00135803222656250e-05),
        (0.0, torch.float16, 0.0),
    ],
)
def test_numbers_are_rounded_as_files_do(value: float, dtype: torch.dtype, stored: float) -> None:
    assert as_stored(value, dtype) == stored
