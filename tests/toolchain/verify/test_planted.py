"""Defects in compiled ExecuTorch artifacts: `planish verify` names each, with its exit code, and nothing crashes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from byte_tokenizer import save_tokenizer
from support import random_model
from torch import fx
from typer.testing import CliRunner, Result

from planish import lower
from planish.build import compile_model
from planish.bundle import write_bundle
from planish.cli.app import app
from planish.compiled import Compiled, Silent, TargetResult
from planish.request import Request
from planish.verdict import Failed, Passed
from planish.verify.weights import check_integers
from planish_passes.program import Program
from planish_passes.quantise import SCALES, ZEROS, quantized
from planish_targets.contract import Artifact, Recipe
from planish_targets.executorch.target import ExecutorchTarget

pytest.importorskip("executorch")

LINEAR = "model.layers.0.mlp.up_proj.weight"
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}


@dataclass(frozen=True)
class Planting(ExecutorchTarget):
    """Writes another program than it is given."""

    split: bool = True
    plant: Callable[[Program], None] = field(default=lambda program: None)

    def lower(self, program: Program, into: Path, recipe: Recipe) -> Artifact:
        wrong = program.copy()
        self.plant(wrong)
        return super().lower(wrong, into, recipe)


@dataclass(frozen=True)
class Made:
    """A compiled language model, its weights in a .ptd file.

    Args:
        bundle: what was written.
        program: quantised, as all targets share it.
        written: writes the artifact again: target, yardstick and folder -> artifact.
        yardstick: what was lowered.
    """

    compiled: Compiled
    bundle: Path
    program: Program
    written: Callable[[ExecutorchTarget, Program, Path], Artifact]
    yardstick: Program
    root: Path
    kept: dict[str, Artifact] = field(default_factory=dict)

    def with_weights(self, plant: Callable[[Program], Program]) -> Artifact:
        """The artifact of a program with other weights; each is made once."""
        name = plant.__name__  # type: ignore[attr-defined]
        if name not in self.kept:
            self.kept[name] = self.written(Planting(), plant(self.yardstick), self.root / name)
        return self.kept[name]

    @property
    def result(self) -> TargetResult:
        return self.compiled.targets[0]

    @property
    def artifact(self) -> Artifact:
        assert self.result.artifact is not None
        return self.result.artifact

    def sealed(self, artifact: Artifact, at: Path) -> Path:
        """A bundle of another artifact whose hashes are right."""
        return write_bundle(replace(self.compiled, targets=(replace(self.result, artifact=artifact),)), at)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root, calls, plain = tmp_path_factory.mktemp("planted"), [], lower._written
    config = tf.LlamaConfig(num_key_value_heads=2, vocab_size=304, bos_token_id=296, eos_token_id=299, **SIZES)
    random_model(config, tf.AutoModelForCausalLM).save_pretrained(root / "model")
    save_tokenizer(root / "model")
    request = Request(
        model=str(root / "model"), targets=("executorch",), recipe="int4", group=32, rounding="nearest", context=64,
        split_weights=True, gates={"divergence": 10.0, "agreement": 0.0},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lower, "_written", lambda *args: calls.append(args) or plain(*args))
        compiled = compile_model(request, Silent(), root / "work")
    (shared, _, yardstick, sizes, _) = calls[0]

    def written(target: ExecutorchTarget, program: Program, into: Path) -> Artifact:
        return plain(shared, target, program, sizes, into)[1]

    return Made(compiled, write_bundle(compiled, root / "whole.planish"), shared.program, written, yardstick, root)


def planish(*words: object) -> Result:
    """A command on the real registry; an exception of any other kind than an exit fails the test."""
    result = CliRunner().invoke(app, [str(w) for w in words], prog_name="planish", catch_exceptions=False)
    assert "Traceback" not in result.output
    return result


def refused(bundle: Path) -> str:
    """What `planish verify` says of a bundle whose gate fails."""
    result = planish("verify", bundle, "-q")
    assert result.exit_code == 3, result.output
    return " ".join(result.output.split())


def test_what_is_whole_passes(made: Made) -> None:
    assert not made.compiled.failed
    runner = next(v for v in made.result.verdicts if v.check == "text_runner")
    assert isinstance(runner, Passed), runner  # TextLLMRunner is given both files
    assert planish("verify", made.bundle, "-q").exit_code == 0
    told = planish("run", made.bundle, "ab", "--raw", "-n", 4, "-q")
    assert (told.exit_code, bool(told.stdout)) == (0, True)


def attention(program: Program) -> fx.Node:
    return next(n for n in program.graph.nodes if str(n.target) == "planish.resident_attention.default")


def swap_keys_and_values(program: Program) -> None:
    node = attention(program)
    query, key, value, *rest = node.args
    node.args = (query, value, key, *rest)


def shift_slots(program: Program) -> None:
    """Every later position is one too low: a slot is written twice."""
    slots = next(n for n in program.graph.nodes if n.name == "slots")
    with program.graph.inserting_before(next(n for n in program.graph.nodes if n.op == "call_function")):
        moved = program.graph.call_function(torch.ops.aten.clamp.default, (slots, 1))
        shifted = program.graph.call_function(torch.ops.aten.sub.Tensor, (moved, 1))
    moved.meta["val"] = shifted.meta["val"] = slots.meta["val"]
    for reader in [u for u in slots.users if u is not moved]:
        reader.replace_input_with(slots, shifted)


def transpose_scales(program: Program) -> Program:
    scales = program.weights.read(LINEAR + SCALES)
    assert scales.shape[1] > 1
    turned = scales.t().reshape(scales.shape)
    return replace(program, weights=program.weights.with_tensor(LINEAR + SCALES, turned.contiguous()))


def drop_zero_points(program: Program) -> Program:
    zeros = program.weights.read(LINEAR + ZEROS)
    assert zeros.any()
    return replace(program, weights=program.weights.with_tensor(LINEAR + ZEROS, torch.zeros_like(zeros)))


@pytest.mark.parametrize("plant", [swap_keys_and_values, shift_slots])
def test_wrong_programs(made: Made, plant: Callable[[Program], None], tmp_path: Path) -> None:
    artifact = made.written(Planting(plant=plant), made.yardstick, tmp_path / "artifact")
    said = refused(made.sealed(artifact, tmp_path / "wrong.planish"))
    assert "the artifact does not reproduce the stored outputs" in said
    assert "executorch lowering" in said


@pytest.mark.parametrize(
    ("plant", "what"), [(transpose_scales, "scales differ"), (drop_zero_points, "zero points differ")]
)
def test_wrong_weights(made: Made, plant: Callable[[Program], Program], what: str, tmp_path: Path) -> None:
    """A compile names the weight, a second look the artifact."""
    artifact = made.with_weights(plant)
    verdict = check_integers(made.program, Planting(), artifact)
    assert isinstance(verdict, Failed)
    assert f"weight {LINEAR!r}" in verdict.reason
    assert what in verdict.reason
    said = refused(made.sealed(artifact, tmp_path / "wrong.planish"))
    assert "the artifact does not reproduce the stored outputs" in said


def test_scales_of_another_weight_are_a_verdict_of_the_compile(made: Made, tmp_path: Path) -> None:
    """Zero points are stored as products with scales: they do not fit any more, and nothing can be read."""
    artifact = replace(made.artifact, folder=shutil.copytree(made.artifact.folder, tmp_path / "artifact"))
    path, scales = artifact.folder / "model.ptd", quantized(made.program)[LINEAR].scales
    stored, turned = (t.to(torch.bfloat16).view(torch.int16).numpy().tobytes() for t in (scales, scales.flip(0)))
    assert path.read_bytes().count(stored) == 1
    path.write_bytes(path.read_bytes().replace(stored, turned))
    verdict = check_integers(made.program, Planting(), artifact)
    assert isinstance(verdict, Failed)
    assert verdict.reason.startswith("model.pte: ")
    assert LINEAR in verdict.reason


def rewrite(name: str, change: Callable[[bytes], bytes], folder: Path) -> None:
    content = (folder / name).read_bytes()
    (folder / name).unlink()  # it may be a link to the original
    (folder / name).write_bytes(change(content))


FILES: Mapping[str, tuple[Callable[[Path], None], str, str]] = {
    "no .ptd": (
        lambda f: (f / "model.ptd").unlink(),
        "missing: {}.ptd",
        "keeps its weights in model.ptd, which is not",
    ),
    "short .ptd": (partial(rewrite, "model.ptd", lambda c: c[:-100]), "changed: {}.ptd", "model.ptd is cut off"),
    "short .pte": (partial(rewrite, "model.pte", lambda c: c[:-100]), "changed: {}.pte", "the .pte file is cut off"),
}


@pytest.mark.parametrize("name", FILES)
def test_wrong_files(made: Made, name: str, tmp_path: Path) -> None:
    """Hashes tell it; and where somebody has sealed the bundle again, so does what opens the files."""
    spoil, changed, told = FILES[name]
    bundle = shutil.copytree(made.bundle, tmp_path / "copy.planish")
    spoil(bundle / "targets" / "executorch")
    assert changed.format("targets/executorch/model") in refused(bundle)
    artifact = replace(made.artifact, folder=shutil.copytree(made.artifact.folder, tmp_path / "artifact"))
    spoil(artifact.folder)
    sealed = made.sealed(artifact, tmp_path / "sealed.planish")
    assert told in refused(sealed)
    if name in ("no .ptd", "short .pte"):
        result: Any = planish("run", sealed, "ab", "--raw", "-n", 4, "-q")
        assert result.exit_code == 1
        assert told in " ".join(result.stderr.split())


def test_the_file_of_weights_of_another_model(made: Made, tmp_path: Path) -> None:
    other = made.with_weights(transpose_scales)
    artifact = replace(made.artifact, folder=shutil.copytree(made.artifact.folder, tmp_path / "artifact"))
    shutil.copyfile(other.folder / "model.ptd", artifact.folder / "model.ptd")
    said = refused(made.sealed(artifact, tmp_path / "sealed.planish"))
    assert "model.ptd is not the file that model.pte was written with" in said
