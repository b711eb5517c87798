"""Recipe keep: what a GGUF file holds is in the artifacts, bit for bit; planted defects are caught."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from gguf_models import stored_values, write_llama
from support import FAMILIES, random_model
from torch import Tensor, nn

from planish import build, keeping
from planish.capture import capture
from planish.checkpoint import Loaded, kept
from planish.checkpoint.blocks import Unpacked, unpack
from planish.compiled import Compiled, Silent
from planish.keeping import check_kept, keep
from planish.request import Request
from planish.source import open_source
from planish.tasks import TASKS
from planish.verdict import Failed, Passed, Verdict
from planish_passes import pipeline
from planish_passes.errors import PlanishError
from planish_passes.infra import run_passes
from planish_passes.pack_linears import PACKED
from planish_passes.program import Program
from planish_passes.rounding import round_to_nearest
from planish_passes.weights import QuantizedTensor, WeightFormat, WeightStore
from planish_targets import registry

pytest.importorskip("onnxruntime")
TARGETS = ("onnxruntime", "directml")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def compiled(model: Path, into: Path, **options: Any) -> Compiled:
    options = {"targets": TARGETS, "recipe": "keep", "verify": False, **options}
    return build.compile_model(Request(model=str(model), **options), Silent(), into)


def read_back(result: Compiled, target: str) -> dict[str, QuantizedTensor]:
    """What the artifact's files hold, weights that lie one behind the other apart."""
    artifact = next(t.artifact for t in result.targets if t.target == target)
    assert artifact is not None
    rows = {w.name: w.before for w in result.weights}
    found = {}
    for whole, tensor in registry.find(target).read_weights(artifact).items():
        at, columns = 0, tensor.values.shape[1]
        for name in whole.split(PACKED):
            span = slice(at, at + rows[name] // (4 * columns))
            minima = None if tensor.minima is None else tensor.minima[span]
            zeros = None if tensor.zero_points is None else tensor.zero_points[span]
            found[name] = replace(
                tensor, values=tensor.values[span], scales=tensor.scales[span], minima=minima, zero_points=zeros
            )
            at = span.stop
    return found


def program_values(path: Path) -> dict[str, Tensor]:
    """What the file holds, a tied matrix under the name that the program has for it."""
    found = stored_values(path)
    return found if HEAD in found else {HEAD if n == EMBEDDING else n: v for n, v in found.items()}


def differing(result: Compiled, target: str, truth: Mapping[str, Tensor]) -> set[str]:
    found = read_back(result, target)
    return {name for name, values in truth.items() if not torch.equal(found[name].dequantize(), values)}


@pytest.mark.parametrize(("kind", "tied"), [("Q4_0", False), ("Q4_1", True), ("Q8_0", True)])
def test_artifacts_hold_the_numbers_of_the_file(kind: str, tied: bool, tmp_path: Path) -> None:
    path = write_llama(tmp_path / "tiny.gguf", kind, tied=tied)
    result, truth = compiled(path, tmp_path / "work"), program_values(path)
    assert len(truth) == 8 + (not tied)
    for target in TARGETS:
        assert not differing(result, target, truth), target
        assert set(read_back(result, target)) == set(truth)  # a tied head is one copy
    assert not result.refused
    bits = 8 if kind == "Q8_0" else 4
    assert {w.format for w in result.weights if w.name in truth} == {f"int{bits} per 32"}


def test_a_mixed_file(tmp_path: Path) -> None:
    """Each matrix in its own width; what cannot be kept is listed with its type, and exact in float."""
    kinds = {
        EMBEDDING: ("token_embd.weight", "Q8_0"),
        "model.layers.0.self_attn.q_proj.weight": ("blk.0.attn_q.weight", "Q4_0"),
        "model.layers.0.mlp.down_proj.weight": ("blk.0.ffn_down.weight", "Q6_K"),
        "model.layers.0.self_attn.k_proj.weight": ("blk.0.attn_k.weight", "F16"),
    }
    stored = dict(kinds.values())
    path = write_llama(tmp_path / "tiny.gguf", lambda name: stored.get(name, "Q4_1"))
    result, truth = compiled(path, tmp_path / "work", targets=("onnxruntime",)), program_values(path)
    floating = {name for name, (_, kind) in kinds.items() if kind in ("Q6_K", "F16")}
    assert not differing(result, "onnxruntime", {n: v for n, v in truth.items() if n not in floating})
    assert floating.isdisjoint(read_back(result, "onnxruntime"))
    reasons = sorted(r.reason for r in result.refused)
    assert [r.split(";")[0] for r in reasons] == [
        "model.layers.0.mlp.down_proj.weight: the file stores it as Q6_K",
        "model.layers.0.self_attn.k_proj.weight: the file stores it as F16",
    ]


@pytest.mark.parametrize(("activations", "targets", "most"), [("auto", TARGETS, 0.02), ("none", TARGETS[:1], 1e-4)])
def test_a_checked_compile_passes(activations: str, targets: tuple[str, ...], most: float, tmp_path: Path) -> None:
    path = write_llama(tmp_path / "tiny.gguf", lambda name: "Q8_0" if "token" in name else "Q4_1")
    result = compiled(path, tmp_path / "work", verify=True, activations=activations, targets=targets)
    assert not result.failed, result.failed
    weights = next(v for v in result.verdicts if v.check == "weights")
    assert isinstance(weights, Passed)
    assert {m.name: m.value for m in weights.metrics}["kept_tensors"] == 8
    for target in result.targets:
        quality = next(v for v in target.verdicts if v.check == "quality")
        assert isinstance(quality, Passed)
        kl = next(m for m in quality.metrics if m.name == "kl")
        assert kl.limit == most
        if activations == "none":
            assert abs(kl.value) < 1e-7


@cache
def floating(kind: str) -> tuple[Program, Loaded]:
    """A tiny llama before anything is quantised, and its file."""
    path = write_llama(Path(mkdtemp(prefix="planish-test-")) / "tiny.gguf", kind)
    source, loaded = open_source(str(path)), list[Loaded]()

    def weights(model: nn.Module) -> WeightStore:
        loaded.append(source.load(model))
        return loaded[-1].store

    captured = capture(source.model_class(), source.config, TASKS[source.task], weights)
    return run_passes(captured.program, pipeline.fuse()).program, loaded[-1]


def verdict(kind: str) -> Verdict:
    program, loaded = floating(kind)
    return check_kept(keep(program, loaded.stored).program, program.weights)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_the_check_finds_nothing(kind: str) -> None:
    found = verdict(kind)
    assert isinstance(found, Passed)
    assert found.metrics[0].value == 0


def requantised(raw: Tensor, kind: str) -> Unpacked:
    values, scales, minima = unpack(raw, kind)
    real = QuantizedTensor(values, scales, None, WeightFormat(), minima).dequantize()
    again = round_to_nearest(real, WeightFormat(4, 32))
    return Unpacked(again.values, again.scales, torch.zeros_like(again.scales) if minima is not None else None)


def without_minima(raw: Tensor, kind: str) -> Unpacked:
    found = unpack(raw, kind)
    assert found.minima is not None
    return found._replace(minima=torch.zeros_like(found.minima))


def swapped_halves(raw: Tensor, kind: str) -> Unpacked:
    found = unpack(raw, kind)
    halves = found.values.view(len(raw), -1, 2, 16)
    return found._replace(values=halves.flip(2).reshape(found.values.shape))


def lower_scales(raw: Tensor, kind: str) -> Unpacked:
    found = unpack(raw, kind)
    return found._replace(scales=torch.nextafter(found.scales, torch.zeros_like(found.scales)))


DEFECTS = {
    "quantised again": (requantised, "Q4_0"),
    "no minima": (without_minima, "Q4_1"),
    "halves of a byte": (swapped_halves, "Q4_0"),
    "halves of a byte, with minima": (swapped_halves, "Q4_1"),
    "scales off by a bit": (lower_scales, "Q4_0"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_in_unpacking_is_caught(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, kind = DEFECTS[defect]
    monkeypatch.setattr(keeping, "unpack", wrong)
    found = verdict(kind)
    assert isinstance(found, Failed)
    assert "is not what the file holds" in found.reason


def test_rows_in_the_files_order_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = kept.row_numbers

    def unmoved(arranged: Tensor, columns: int) -> Tensor | None:
        found = numbers(arranged, columns)
        return None if found is None else torch.arange(len(found))

    monkeypatch.setattr(kept, "row_numbers", unmoved)
    found = verdict("Q4_0")
    assert isinstance(found, Failed)
    assert re.search(r"self_attn\.[qk]_proj\.weight' is not what the file holds", found.reason)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_a_defect_in_an_artifact_is_seen_by_these_tests(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(keeping, "unpack", requantised if kind == "Q4_0" else without_minima)
    path = write_llama(tmp_path / "tiny.gguf", kind)
    result = compiled(path, tmp_path / "work", targets=("onnxruntime",))
    assert len(differing(result, "onnxruntime", program_values(path))) == 8


def test_a_folder_has_no_blocks(tmp_path: Path) -> None:
    from transformers import AutoModel

    random_model(FAMILIES["bert"](), AutoModel).save_pretrained(tmp_path / "bert")
    with pytest.raises(PlanishError, match="needs a model that is quantised already: a GGUF file") as caught:
        compiled(tmp_path / "bert", tmp_path / "work", task="feature-extraction")
    assert "--recipe keep" in caught.value.where
    assert "--recipe int4 or int8" in caught.value.hint


@pytest.mark.parametrize(
    ("flag", "options"),
    [
        ("--group", {"group": 64}),
        ("--symmetric", {"symmetric": True}),
        ("--rounding", {"rounding": "search"}),
        ("--bits", {"bits": 4.5}),
    ],
)
def test_options_that_would_change_the_blocks(flag: str, options: dict[str, Any], tmp_path: Path) -> None:
    path = write_llama(tmp_path / "tiny.gguf", "Q4_0")
    with pytest.raises(PlanishError, match="takes integers and scales as the file has them") as caught:
        compiled(path, tmp_path / "work", **options)
    assert caught.value.where == flag


def test_a_file_without_any_such_type(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "tiny.gguf", "F16")
    with pytest.raises(PlanishError, match="no weight of this file is of a type that can be kept") as caught:
        compiled(path, tmp_path / "work")
    assert "stores it as F16" in caught.value.where
