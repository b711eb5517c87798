"""A whole compile of tiny models, and defects planted along the way: each is caught, and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import FAMILIES, random_model
from torch import Tensor
from transformers import AutoModel, AutoModelForImageClassification

from planish import build
from planish.compiled import Compiled, Silent
from planish.request import Gates, Request
from planish.verdict import Failed, Passed
from planish_passes import quantise, rounding
from planish_passes.errors import PlanishError
from planish_passes.program import op_name
from planish_targets.onnxruntime import target as onnxruntime


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Family -> folder with a random tiny model."""
    root, made = tmp_path_factory.mktemp("models"), set()

    def folder(family: str) -> str:
        path = root / family
        if family not in made:
            classifier = AutoModelForImageClassification if family == "vit" else AutoModel
            random_model(FAMILIES[family](), classifier).save_pretrained(path)
            made.add(family)
        return str(path)

    return folder


def compiled(model: str, tmp_path: Path, targets: str = "onnxruntime", **options: Any) -> Compiled:
    options = {"recipe": "float", "task": "feature-extraction", **options}
    request = Request(model=model, targets=tuple(targets.split(",")), **options)
    return build.compile_model(request, Silent(), tmp_path / "work")


def failures(result: Compiled) -> dict[str, Failed]:
    return {verdict.check: verdict for _, verdict in result.failed}


@pytest.mark.parametrize("recipe", ["float", "int8"])
@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "mpnet", "deberta-v2", "modernbert"])
def test_text_encoders_compile(models: Callable[[str], str], family: str, recipe: str, tmp_path: Path) -> None:
    result = compiled(models(family), tmp_path, recipe=recipe)
    assert not result.failed, result.failed
    assert {v.check for v in result.targets[0].verdicts} >= {"quality", "placement", "lowering"}
    assert result.targets[0].axes["batch"] == (1, 1024)
    assert all(isinstance(v, Passed) for v in result.verdicts)
    assert [d.of for d in result.targets[0].drift if d.layers] == ["quantisation", "lowering", "steps"]
    speed = result.targets[0].speed
    assert speed is not None
    assert set(speed.medians()) == set(speed.tokens) == set(result.targets[0].golden_inputs)
    assert 0 < (speed.start_bytes or 0) <= (speed.peak_bytes or 0)


def test_pictures_compile(models: Callable[[str], str], tmp_path: Path) -> None:
    request = Request(model=models("vit"), targets=("onnxruntime",), recipe="int8", task="image-classification")
    result = build.compile_model(request, Silent(), tmp_path / "work")
    assert not result.failed, result.failed
    assert any("conv2d" in r.node for r in result.refused)


def test_fixed_shapes_on_request(models: Callable[[str], str], tmp_path: Path) -> None:
    result = compiled(models("bert"), tmp_path, dynamic=False, sequence_length=24)
    assert result.targets[0].shapes["input_ids"] == (1, 24)
    assert not result.failed


def test_a_target_that_cannot_is_told_before_work_starts(models: Callable[[str], str], tmp_path: Path) -> None:
    with pytest.raises(PlanishError, match="takes fixed shapes only"):
        compiled(models("bert"), tmp_path, "executorch", dynamic=True)


def test_gates_can_be_moved_and_fail(models: Callable[[str], str], tmp_path: Path) -> None:
    result = compiled(models("bert"), tmp_path, recipe="int8", gates=Gates(cosine=0.9999999))
    quality = failures(result)["quality"]
    assert quality.metrics[0].limit == 0.9999999
    assert quality.diverged is not None
    assert quality.diverged.module


# -- planted defects --------------------------------------------------------------------------------------------------


def tamper(monkeypatch: pytest.MonkeyPatch, edit: Callable[[Any], Any]) -> None:
    """Let the target lower a program that was changed behind everyone's back."""
    lower = onnxruntime.OnnxRuntimeTarget.lower

    def tampered(self: Any, program: Any, into: Path, recipe: Any) -> Any:
        return lower(self, edit(program.copy()), into, recipe)

    monkeypatch.setattr(onnxruntime.OnnxRuntimeTarget, "lower", tampered)


def change_weight(name: str, fn: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    def edit(program: Any) -> Any:
        spec = program.weights.spec(name)
        return replace(program, weights=program.weights.derive(name, (name,), fn, spec))

    return edit


def change_node(op: str, number: int, fn: Callable[[Any], None]) -> Callable[[Any], Any]:
    def edit(program: Any) -> Any:
        fn([n for n in program.graph.nodes if n.op == "call_function" and op_name(n) == op][number])
        program.exported.graph_module.recompile()
        return program

    return edit


def other_eps(node: Any) -> None:
    node.args = (*node.args[:4], 1e-5, *node.args[5:])


DENSE = "encoder.layer.1.output.dense"


@pytest.mark.parametrize(
    ("edit", "module"),
    [
        (change_weight(f"{DENSE}.weight", torch.zeros_like), DENSE),
        (change_weight("embeddings.token_type_embeddings.weight", lambda t: t.flip(0)), "embeddings"),
        (
            change_weight("encoder.layer.0.attention.self.key.weight", lambda t: t.t()),
            "encoder.layer.0.attention.self.key",
        ),
        (change_node("aten.layer_norm", 1, other_eps), "encoder.layer.0.attention.output.LayerNorm"),
        (change_node("aten.gelu", 0, lambda n: setattr(n, "kwargs", {"approximate": "tanh"})), "encoder.layer.0"),
        (
            change_node("aten.where", 0, lambda n: n.replace_all_uses_with(n.args[1])),
            "encoder.layer.0.attention.self",
        ),
    ],
    ids=["zeroed layer", "swapped token types", "transposed weight", "eps", "other gelu", "dropped mask"],
)
def test_a_defect_of_lowering_is_named(
    models: Callable[[str], str],
    edit: Callable[[Any], Any],
    module: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    tamper(monkeypatch, edit)
    failed = failures(compiled(models("bert"), tmp_path))
    eps = "LayerNorm" in module
    assert set(failed) == ({"attributes", "lowering"} if eps else {"lowering"})
    for found in failed.values():
        assert found.diverged is not None
        assert found.diverged.module.startswith(module)


@pytest.mark.parametrize(
    ("suffix", "fn"),
    [
        (quantise.SCALES, lambda t: t.flip(0)),
        (quantise.VALUES, torch.zeros_like),
        (quantise.VALUES, lambda t: t.roll(1)),
    ],
    ids=["other scales", "zeroed", "shifted"],
)
def test_a_changed_integer_or_scale_in_an_artifact_is_named(
    models: Callable[[str], str],
    suffix: str,
    fn: Callable[[Tensor], Tensor],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    tamper(monkeypatch, change_weight(f"{DENSE}.weight{suffix}", fn))
    failed = failures(compiled(models("bert"), tmp_path, recipe="int8"))
    assert f"'{DENSE}.weight'" in failed["weights"].reason
    assert "lowering" in failed


def test_rounding_down_is_caught(models: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def down(members: Tensor, grid: rounding.Grid, format: Any) -> Tensor:
        return torch.floor(members / grid[0]).clamp(-127, 127)

    monkeypatch.setattr(rounding, "encode", down)
    weights = failures(compiled(models("bert"), tmp_path, recipe="int8"))["weights"]
    assert "quantisation steps away" in weights.reason


def test_a_trace_that_loses_something_is_caught(
    models: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = build.capture

    def losing(*args: Any, **options: Any) -> Any:
        captured = real(*args, **options)
        edit = change_weight("encoder.layer.0.intermediate.dense.bias", lambda t: t + 0.1)
        return replace(captured, program=edit(captured.program))

    monkeypatch.setattr(build, "capture", losing)
    failed = failures(compiled(models("bert"), tmp_path))
    diverged = failed["capture"].diverged
    assert diverged is not None
    assert diverged.module == "encoder.layer.0.intermediate.dense"


def test_a_truncated_weights_file_is_named(models: Callable[[str], str], tmp_path: Path) -> None:
    from planish_targets.onnx_graph.read import quantized_weights

    artifact = compiled(models("bert"), tmp_path, recipe="int8").targets[0].artifact
    assert artifact is not None
    data = artifact.folder / "model.ort"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(PlanishError, match="shorter than") as caught:
        quantized_weights(artifact.path)
    assert "tensor '" in caught.value.where


def test_a_missing_package_is_refused_with_the_command(
    models: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("planish.requirements._installed", lambda package: None)
    with pytest.raises(PlanishError) as caught:
        compiled(models("bert"), tmp_path)
    assert caught.value.hint == "pip install 'planish[onnxruntime]'"


def test_the_model_stays_as_it_was(models: Callable[[str], str], tmp_path: Path) -> None:
    folder = Path(models("bert"))
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    compiled(str(folder), tmp_path)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
