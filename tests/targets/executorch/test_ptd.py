"""Weights in a file of their own: equal in every way, stored once, and no file that is missing or wrong gets to a
runtime."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from support import program_of
from torch import Tensor, nn

from planish_passes import pipeline
from planish_passes.errors import PlanishError
from planish_passes.infra import run_passes
from planish_passes.program import Program
from planish_passes.quantise import quantized
from planish_passes.weights import WeightFormat
from planish_targets import runner
from planish_targets.contract import Artifact, Recipe, SplitsWeights, Unavailable
from planish_targets.executorch import TARGET
from planish_targets.executorch.attached import attached, sample
from planish_targets.executorch.ptd import check_head, open_ptd
from planish_targets.executorch.weights import same
from planish_targets.serve import Call

pytest.importorskip("executorch")

INT8 = Recipe("int8", 8)
FEED = {"x0": torch.tensor([[3, 1, 4, 1]])}


class Network(nn.Module):
    """A table and a norm in portable kernels, linears in delegates."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.words, self.norm = nn.Embedding(300, 64), nn.LayerNorm(64)
        self.up, self.down = nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        return self.norm(x + self.down(torch.relu(self.up(self.norm(x)))))  # type: ignore[no-any-return]


@cache
def prepared(seed: int = 0) -> tuple[Program, Program]:
    """Yardstick, and the form to lower."""
    passes = (*pipeline.fuse(), *pipeline.quantise(WeightFormat(8)))
    passes += pipeline.yardstick(torch.float32, "int8_token_asymmetric")
    yardstick = run_passes(program_of(Network(seed), FEED["x0"]), passes).program
    rest = (*pipeline.for_target(TARGET.capabilities.keeps, None), *TARGET.passes(INT8))
    return yardstick, run_passes(yardstick, rest).program


@cache
def made(split: bool, seed: int = 0) -> Artifact:
    assert isinstance(TARGET, SplitsWeights)
    target = TARGET.with_split_weights() if split else TARGET
    return target.lower(prepared(seed)[1], Path(mkdtemp(prefix="planish-test-")), INT8)


def run(artifact: Artifact) -> runner.Ran | runner.Broke:
    command = TARGET.runner(artifact)
    assert not isinstance(command, Unavailable)
    return runner.run(command, artifact, {"case": FEED})


def data(artifact: Artifact) -> Path:
    return artifact.folder / "model.ptd"


def test_both_forms_compute_the_same_bits() -> None:
    one, two = run(made(False)), run(made(True))
    assert isinstance(one, runner.Ran), one
    assert isinstance(two, runner.Ran), two
    assert torch.equal(one.outputs["case"]["y0"], two.outputs["case"]["y0"])


def test_the_program_is_small_and_every_weight_is_stored_once() -> None:
    whole, split = made(False), made(True)
    program, weights = split.path.read_bytes(), data(split).read_bytes()
    assert len(program) < 0.3 * len(whole.path.read_bytes())
    assert len(program) + len(weights) < len(whole.path.read_bytes()) + 4096
    for tensor in quantized(prepared()[0]).values():
        for part in (tensor.values, tensor.scales):
            stored = part.contiguous().numpy().tobytes()
            assert (program.count(stored), weights.count(stored)) == (0, 1)


def test_integers_and_scales_come_back_from_the_data_file() -> None:
    found, truth = TARGET.read_weights(made(True)), quantized(prepared()[0])
    assert found.keys() == truth.keys()
    assert all(same(found[name], truth[name]) for name in truth)


def test_what_is_told_of_both_forms_is_equal() -> None:
    whole, split = (TARGET.placement(made(s)) for s in (False, True))
    assert split == whole
    one, two = (TARGET.inspect(made(s).path) for s in (False, True))
    assert one is not None
    assert two is not None
    assert one["dtypes"] == two["dtypes"]
    assert TARGET.read_attributes(made(True)) == TARGET.read_attributes(made(False))


def test_the_data_file_is_recorded_with_a_fingerprint() -> None:
    artifact = made(True)
    size = data(artifact).stat().st_size
    assert artifact.options["data"] == {"file": "model.ptd", "bytes": size, "sample": sample(data(artifact))}
    assert "model.ptd" in artifact.notes[0]
    assert "data" not in made(False).options
    assert list(made(False).folder.iterdir()) == [made(False).path]


def flip_one_bit(path: Path) -> None:
    stored = quantized(prepared()[0])["up.weight"].values.numpy().tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(stored) + 5] ^= 1
    path.write_bytes(content)


def same_names(path: Path) -> None:
    """The constants of another model under the names of this one."""
    other, (_, _, begin) = data(made(True, seed=1)).read_bytes(), check_head(path)
    content = path.read_bytes()
    assert len(content) == len(other)
    path.write_bytes(content[:begin] + other[begin:])


def other_model(path: Path) -> None:
    shutil.copyfile(data(made(True, seed=1)), path)


def spoil_contents(path: Path) -> None:
    at, length, _ = check_head(path)
    content = path.read_bytes()
    path.write_bytes(content[:at] + b"\x5a" * length + content[at + length :])


WRONG = "model.ptd is not the file that model.pte was written with"
SPOILT: list[tuple[Callable[[Path], Any], str, str]] = [
    (lambda p: p.unlink(), "model.ptd, which is not there", "which is not there"),
    (lambda p: p.write_bytes(p.read_bytes()[:-100]), "model.ptd is cut off", "is cut off"),
    (lambda p: p.write_bytes(b"\x5a" * 4096), "not a .ptd file", "not a .ptd file"),
    (lambda p: p.write_bytes(b""), "not a .ptd file", "not a .ptd file"),
    (other_model, WRONG, "belongs to another program"),
    (spoil_contents, WRONG, "cannot be read"),
    (same_names, WRONG, ""),
    (flip_one_bit, WRONG, ""),
]
NAMES = ["missing", "truncated", "garbage", "empty", "of another model", "spoilt contents", "of a sibling", "one bit"]


@pytest.mark.parametrize(("spoil", "refusal", "told"), SPOILT, ids=NAMES)
def test_a_wrong_data_file_is_named_and_never_opened(
    spoil: Callable[[Path], Any], refusal: str, told: str, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made(True).folder, folder)
    artifact = dataclasses.replace(made(True), folder=folder)
    spoil(data(artifact))
    with pytest.raises(PlanishError, match=refusal):
        attached(Call(artifact.path, artifact.options, 1))
    if not told:  # what is whole can be read; the comparison of integers is what finds it
        found, truth = TARGET.read_weights(artifact), quantized(prepared()[0])
        wrong = [n for n in truth if not same(found[n], truth[n])]
        assert wrong == ["up.weight"] if spoil is flip_one_bit else len(wrong) == len(truth)
        return
    for look in (TARGET.read_weights, TARGET.placement, lambda a: TARGET.inspect(a.path)):
        with pytest.raises(PlanishError, match=told):
            look(artifact)


def test_a_missing_data_file_is_a_reason_and_no_crash(tmp_path: Path) -> None:
    shutil.copyfile(made(True).path, tmp_path / "model.pte")
    broke = run(dataclasses.replace(made(True), folder=tmp_path))
    assert isinstance(broke, runner.Broke)
    assert "the program keeps its weights in model.ptd, which is not there" in broke.reason


def test_without_the_record_the_runtime_itself_fails_and_that_is_a_verdict() -> None:
    """This is what the check stands before: depending on what is missing, a refusal or a crash."""
    artifact = made(True)
    bare = {k: v for k, v in artifact.options.items() if k != "data"}
    broke = run(dataclasses.replace(artifact, options=bare))
    assert isinstance(broke, runner.Broke)
    assert "model.ptd" not in broke.reason


def test_a_place_behind_the_end_is_refused(tmp_path: Path) -> None:
    source, wrong = data(made(True)), tmp_path / "model.ptd"
    content = bytearray(source.read_bytes())
    content[32:40] = (2**40).to_bytes(8, "little")  # first byte of the constants
    wrong.write_bytes(content)
    with pytest.raises(PlanishError, match="is cut off"):
        open_ptd(wrong)
