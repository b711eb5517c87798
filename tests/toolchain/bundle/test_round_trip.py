"""What is written is what is read."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from planish.bundle import open_bundle, write_bundle
from planish.bundle.manifest import FileEntry, digest_of
from planish.cli.commands.inspect import _show_bundle
from planish.compiled import Compiled, nothing_ran
from planish.inspect import BundleFacts
from planish.verdict import Failed, NotRun
from planish_passes.errors import PlanishError
from planish_targets.contract import Evidence

Make = Callable[..., Compiled]

LAYOUT = {
    "LICENSE",
    "NOTICE.txt",
    "golden/coreml.safetensors",
    "golden/onnxruntime.safetensors",
    "provenance.intoto.json",
    "report.html",
    "report.json",
    "sbom.cdx.json",
    "targets/coreml/model.mlpackage/Data/weight.bin",
    "targets/coreml/model.mlpackage/Manifest.json",
    "targets/onnxruntime/model.onnx",
    "targets/onnxruntime/model.onnx.data",
    "tokenizer/1_Pooling/config.json",
    "tokenizer/config.json",
    "tokenizer/modules.json",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.txt",
}


def test_layout(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert set(opened.manifest.files) == LAYOUT
    assert opened.check_hashes() == []
    assert opened.manifest.tokenizer == "tokenizer"
    assert opened.manifest.name == "tiny-int8"


def test_artifact_and_its_facts(bundle: Path) -> None:
    opened = open_bundle(bundle)
    artifact = opened.artifact("onnxruntime")
    assert artifact.path.read_bytes() == b"one" * 50
    assert artifact.options == {"inputs": ["input_ids"]}
    entry = opened.manifest.targets["onnxruntime"]
    assert entry.artifact is not None
    assert entry.artifact.bytes == 150 + 256
    assert entry.artifact.sha256 == opened.manifest.files["targets/onnxruntime/model.onnx"].sha256
    assert [(i.name, i.dtype, i.shape) for i in entry.inputs] == [("input_ids", "int64", ("batch", "sequence"))]
    assert [(o.name, o.dtype, o.shape) for o in entry.outputs] == [
        ("last_hidden_state", "float32", ("batch", "sequence", 8))
    ]
    assert entry.axes["sequence"].max == 512
    assert entry.requires == {"onnxruntime": ">=1.22,<2"}
    assert (entry.evidence, entry.result) == (Evidence.EXECUTED, "passed")


def test_failed_and_refused_targets(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    assert manifest.result == "failed"
    assert (manifest.targets["coreml"].evidence, manifest.targets["coreml"].result) == (Evidence.EMULATED, "failed")
    refused = manifest.targets["executorch"]
    assert (refused.artifact, refused.evidence, refused.result) == (None, Evidence.NOT_RUN, "not-run")
    assert refused.golden is None
    with pytest.raises(PlanishError, match=r"no artifact for executorch: aten\.foo has no form here"):
        open_bundle(bundle).artifact("executorch")


def test_unknown_target_suggests(bundle: Path) -> None:
    with pytest.raises(PlanishError, match="did you mean 'coreml'"):
        open_bundle(bundle).artifact("coremll")


def test_golden(bundle: Path) -> None:
    given, wanted = open_bundle(bundle).golden("onnxruntime")
    assert list(given) == list(wanted) == ["padded", "short"]
    assert torch.equal(given["padded"]["input_ids"], torch.arange(10).reshape(2, 5))
    assert torch.equal(wanted["short"]["last_hidden_state"], torch.full((1, 3, 8), 0.5))
    assert open_bundle(bundle).golden("executorch") == ({}, {})


def test_tree_hash_is_that_of_sha256sum_lines() -> None:
    one, two = FileEntry(bytes=1, sha256="1" * 64), FileEntry(bytes=1, sha256="2" * 64)
    files = {"p/b": two, "p/a/c": one, "pq": one}
    lines = f"{'1' * 64}  a/c\n{'2' * 64}  b\n"
    assert digest_of(files, "p") == hashlib.sha256(lines.encode()).hexdigest()
    with pytest.raises(ValueError, match="q is not among them"):
        digest_of(files, "q")


def test_source_license_and_request(bundle: Path, model: Path) -> None:
    manifest = open_bundle(bundle).manifest
    assert manifest.source.location == "tiny-bert"
    assert (manifest.source.architecture, manifest.source.model_type) == ("BertModel", "bert")
    assert (manifest.source.license.id, manifest.source.license.files) == ("apache-2.0", ("LICENSE", "NOTICE.txt"))
    weights = next(f for f in manifest.source.files if f.name == "model.safetensors")
    assert weights.bytes == (model / "model.safetensors").stat().st_size
    assert (manifest.request["model"], manifest.request["runner"]) == ("tiny-bert", ["coreml"])
    assert manifest.recipe.weights is not None
    assert manifest.recipe.weights.bits == 8


def test_no_path_of_this_machine(bundle: Path, model: Path) -> None:
    for name in ("manifest.json", "report.html", "report.json"):
        text = (bundle / name).read_text()
        for place in (model.parent, bundle.parent, Path.home(), Path("/Users/somebody")):
            assert str(place) not in text
    assert "weights of <model> are tied" in open_bundle(bundle).manifest.notes
    assert open_bundle(bundle).manifest.targets["onnxruntime"].notes == ("see <onnxruntime artifact>/x",)


def test_labels_of_classifiers_only(make: Make, tmp_path: Path) -> None:
    plain = open_bundle(write_bundle(make(), tmp_path / "a.planish"))
    assert plain.manifest.labels is None
    sorting = open_bundle(write_bundle(make(task="text-classification"), tmp_path / "b.planish"))
    assert sorting.manifest.labels == {"0": "LABEL_0", "1": "LABEL_1"}


def test_report_has_everything(bundle: Path) -> None:
    report = json.loads((bundle / "report.json").read_text())
    assert report["weights"] == [{"name": "encoder.weight", "before": 64, "after": 24, "format": "int8 per channel"}]
    assert report["refused"][0]["reason"] == "not in the recipe"
    assert report["steps"][0]["name"] == "Quantise"
    coreml = report["targets"]["coreml"]
    assert coreml["placement"]["nodes"][0]["where"] == "unknown"
    assert coreml["placement"]["violations"] == ["rank 6"]
    assert coreml["verdicts"][1]["metrics"][0]["value"] == "NaN"
    assert coreml["verdicts"][1]["diverged"]["relative_error"] == "Infinity"
    assert report["targets"]["onnxruntime"]["latency"]["seconds"] == {"short": 0.002}


def test_equal_builds_are_equal_bytes(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from planish.bundle import contents

    compiled = make()
    one, two = tmp_path / "1" / "m.planish", tmp_path / "2" / "m.planish"
    monkeypatch.setattr(contents, "created", lambda: "2020-01-01T00:00:00Z")
    write_bundle(compiled, one)
    monkeypatch.setattr(contents, "created", lambda: "2021-01-01T00:00:00Z")
    write_bundle(make(), two)
    for name in open_bundle(one).manifest.files:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    first, second = (json.loads((at / "manifest.json").read_text()) for at in (one, two))
    differing = {key for key in first if first[key] != second[key]}
    assert differing == {"created", "sha256"}


def test_source_date_epoch(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    at = write_bundle(make(), tmp_path / "m.planish")
    assert open_bundle(at).manifest.created == "1970-01-02T00:00:00Z"
    before = (at / "manifest.json").read_bytes()
    write_bundle(make(), at)
    assert (at / "manifest.json").read_bytes() == before
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(PlanishError, match="'yesterday' is not a date"):
        write_bundle(make(), at)
    assert (at / "manifest.json").read_bytes() == before


def test_files_are_readable_for_others(bundle: Path) -> None:
    mask = os.umask(0o022)
    os.umask(mask)
    for path in bundle.rglob("*"):
        wanted = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == wanted & ~mask, path


def test_output_shape_admits_what_it_cannot_know(make: Make) -> None:
    from dataclasses import replace

    from planish.bundle import interface

    result = make().targets[0]
    once = {"short": result.golden_inputs["short"]}, {"short": result.golden_outputs["short"]}
    seen = replace(result, golden_inputs=once[0], golden_outputs=once[1])
    assert interface.outputs(seen)[0].shape == ("?", "?", 8)


def test_model_that_changed_meanwhile_is_refused(make: Make, model: Path, tmp_path: Path) -> None:
    compiled = make()
    assert [f.sha256 for f in compiled.source.files]
    vocabulary = model / "vocab.txt"
    before = vocabulary.read_text()
    try:
        vocabulary.write_text("[PAD]\n[UNK]!")
        with pytest.raises(PlanishError, match="changed while it was compiled"):
            write_bundle(compiled, tmp_path / "m.planish")
    finally:
        vocabulary.write_text(before)
    assert list(tmp_path.iterdir()) == []


def test_module_one_level_down(tmp_path: Path) -> None:
    """sentence-transformers' older layout: the transformer is in 0_Transformer/."""
    from planish.bundle.sources import companions, licenses
    from planish.source import open_source

    inner = tmp_path / "0_Transformer"
    inner.mkdir()
    (tmp_path / "modules.json").write_text('[{"path": "0_Transformer"}]')
    (tmp_path / "tokenizer.json").write_text('"of nobody"')
    (tmp_path / "license.txt").write_text("MIT")
    (inner / "tokenizer.json").write_text('"of the model"')
    (inner / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(1)}, str(inner / "model.safetensors"))
    source = open_source(str(tmp_path))
    folder, files = companions(source)
    assert folder == "tokenizer"
    assert files["tokenizer/tokenizer.json"] == inner / "tokenizer.json"
    assert set(files) == {"tokenizer/tokenizer.json", "tokenizer/config.json", "tokenizer/modules.json"}
    assert list(licenses(source)) == ["license.txt"]


def test_failed_verdict_survives(bundle: Path) -> None:
    from planish.bundle.verdicts import verdict_of

    verdict = verdict_of(open_bundle(bundle).manifest.targets["coreml"].verdicts[1])
    assert isinstance(verdict, Failed)
    assert verdict.diverged is not None
    assert verdict.diverged.module == "encoder.layer.3.output"
    assert not verdict.metrics[0].ok


def test_a_variant_lies_in_a_folder_that_every_file_system_takes(make: Make, tmp_path: Path) -> None:
    compiled = make()
    onnx = compiled.targets[0]
    assert onnx.artifact is not None
    names = {"onnxruntime": "onnxruntime:gpu/decode", "coreml": "coreml"}
    targets = tuple(replace(t, target=names.get(t.target, t.target)) for t in compiled.targets)
    at = write_bundle(replace(compiled, targets=targets), tmp_path / "variant.planish")
    assert (at / "targets/onnxruntime-gpu/decode" / onnx.artifact.entry).is_file()
    assert (at / "golden/onnxruntime-gpu/decode.safetensors").is_file()
    read = open_bundle(at)
    assert read.artifact("onnxruntime:gpu/decode").path.is_file()
    assert read.named(["onnxruntime:gpu"]) == ("onnxruntime:gpu/decode",)
    assert read.check_hashes() == []


def test_a_bundle_in_which_nothing_ran_says_so(make: Make, tmp_path: Path) -> None:
    compiled = make()
    onnx, _, refused = compiled.targets
    open_question = replace(onnx, verdicts=(NotRun("lowering", "no GPU here"),))
    assert nothing_ran([onnx, open_question]) == ()
    assert nothing_ran([refused]) == ()
    (note,) = nothing_ran([open_question, refused])
    assert note.startswith("no artifact of this bundle was run (onnxruntime)")
    at = write_bundle(replace(compiled, targets=(open_question, refused)), tmp_path / "open.planish")
    console = Console(record=True, width=200)
    _show_bundle(console, BundleFacts(at, open_bundle(at).manifest, {}))
    assert "; no artifact was run" in console.export_text()
