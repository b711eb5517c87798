"""A compile's result, small but complete: two targets that worked and one that was refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from planish.bundle import contents, write_bundle
from planish.compiled import Compiled, TargetResult, TensorBytes
from planish.request import Request
from planish.source import open_source
from planish.verdict import Divergence, Failed, Metric, NotRun, Passed
from planish_passes.infra import Refusal, Step
from planish_targets.contract import Artifact, Evidence, Placed, Placement


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder; its weights are never read as a model."""
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    (folder / "1_Pooling").mkdir(parents=True)
    config = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 8, "num_attention_heads": 2}
    texts = {
        "config.json": json.dumps(config),
        "tokenizer.json": "{}",
        "tokenizer_config.json": "{}",
        "special_tokens_map.json": "{}",
        "vocab.txt": "[PAD]\n[UNK]\n",
        "modules.json": "[]",
        "1_Pooling/config.json": '{"pooling_mode_mean_tokens": true}',
        "data_config.json": "{}",
        "LICENSE": "Apache License\n",
        "NOTICE.txt": "Made by somebody\n",
        "README.md": "---\nlicense: apache-2.0\n---\n# tiny\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    save_file({"weight": torch.ones(4, 4)}, str(folder / "model.safetensors"))
    return folder


@pytest.fixture(scope="session", autouse=True)
def registry() -> Iterator[None]:
    """Windows of versions that do not change with the real targets."""
    known = {"onnxruntime": SimpleNamespace(requires={"onnxruntime": ">=1.22,<2"})}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents.registry, "known", lambda: known)
        yield


Make = Callable[..., Compiled]


@pytest.fixture(scope="session")
def make(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`make(marker)` = a compile whose artifacts contain `marker`, in a work folder of its own."""

    def build(marker: str = "one", task: str | None = None) -> Compiled:
        work = tmp_path_factory.mktemp("work")
        request = Request(
            model=str(model),
            targets=("onnxruntime", "coreml", "executorch"),
            recipe="int8",
            output=work / "out.planish",
            task=task,
            runner={"coreml": "ssh mac /Users/somebody/bin/planish-run"},
        )
        gate = Metric("cosine_min", 0.9991, 0.99, at_most=False, case="short")
        return Compiled(
            request=request,
            source=open_source(str(model), task=task),
            verdicts=(Passed("capture", Evidence.EXECUTED, (Metric("relative_max", 2e-7, 1e-5),), "torch"),),
            targets=(_onnx(work, marker, gate), _coreml(work, marker, gate), _refused()),
            weights=(TensorBytes("encoder.weight", 64, 24, "int8 per channel"),),
            refused=(Refusal("pooler (aten.linear)", "not in the recipe", "pooler"),),
            steps=(Step("Quantise", 1, (), 10, 11),),
            notes=(f"weights of {model} are tied", marker),
        )

    return build


def _golden() -> dict[str, Any]:
    sizes = {"short": (1, 3), "padded": (2, 5)}
    given = {c: {"input_ids": torch.arange(b * s).reshape(b, s)} for c, (b, s) in sizes.items()}
    wanted = {c: {"last_hidden_state": torch.full((b, s, 8), 0.5)} for c, (b, s) in sizes.items()}
    return {"golden_inputs": given, "golden_outputs": wanted}


def _onnx(work: Path, marker: str, gate: Metric) -> TargetResult:
    folder = work / "onnxruntime"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(marker.encode() * 50)
    (folder / "model.onnx.data").write_bytes(bytes(range(256)))
    return TargetResult(
        target="onnxruntime",
        artifact=Artifact("onnxruntime", folder, "model.onnx", {"inputs": ("input_ids",)}, (f"see {folder}/x",)),
        verdicts=(Passed("lowering", Evidence.EXECUTED, (gate,), "ONNX Runtime CPU"),),
        placement=Placement("partition", (Placed("n0", "MatMul", "accelerated", "CPU"),)),
        latency={"short": 0.002},
        latency_device="this machine",
        shapes={"input_ids": ("batch", "sequence")},
        axes={"batch": (1, 64), "sequence": (1, 512)},
        steps=(Step("Expand", 3, (), 11, 20),),
        **_golden(),
    )


def _coreml(work: Path, marker: str, gate: Metric) -> TargetResult:
    folder = work / "coreml"
    data = folder / "model.mlpackage" / "Data"
    data.mkdir(parents=True)
    (folder / "model.mlpackage" / "Manifest.json").write_text("{}")
    (data / "weight.bin").write_bytes(marker.encode() * 9)
    worst = Metric("max_abs", float("nan"), 1e-3, case="padded")
    at = Divergence("linear_3", "planish.linear_q", "encoder.layer.3.output", float("inf"))
    return TargetResult(
        target="coreml",
        artifact=Artifact("coreml", folder, "model.mlpackage"),
        verdicts=(
            Passed("quality", Evidence.STRUCTURAL, (gate,), "rules"),
            Failed("lowering", Evidence.EMULATED, "max_abs is NaN", (worst,), "MIL interpreter", at),
        ),
        placement=Placement("advice", (Placed("n0", "linear", "unknown", "ANE", "no source"),), ("rank 6",)),
        shapes={"input_ids": (1, 128)},
        **_golden(),
    )


def _refused() -> TargetResult:
    return TargetResult("executorch", None, (NotRun("lowering", "aten.foo has no form here"),))


@pytest.fixture(scope="session")
def written(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle; only to be copied."""
    return write_bundle(make(), tmp_path_factory.mktemp("written") / "tiny-int8.planish")


@pytest.fixture
def bundle(written: Path, tmp_path: Path) -> Path:
    """A bundle to spoil."""
    return Path(shutil.copytree(written, tmp_path / written.name))
