"""A bundle's words about itself, small but complete: a target that passed, one that failed, one that was refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from planish.bundle.codec import UNSEALED, dump_manifest, json_bytes
from planish.bundle.files import fingerprint
from planish.bundle.manifest import Manifest

Json = dict[str, Any]
HASH = "5" * 64
COSINE = {"name": "cosine", "value": 0.9982, "limit": 0.99, "at_most": False, "case": ""}
RELATIVE = {"name": "relative", "value": 2e-3, "limit": 4e-3, "at_most": True, "case": "longest"}
LOST = {"name": "relative", "value": "NaN", "limit": 1e-3, "at_most": True, "case": "short"}
DIVERGED = {"node": "linear_3", "op": "planish.linear_q", "module": "encoder.layer.1.dense", "relative_error": 0.5}
MODULES = ["embeddings.word", *(f"encoder.layer.{n}.{part}" for n in range(3) for part in ("dense", "norm"))]


def passed(check: str, *metrics: Json, evidence: str = "executed", device: str = "torch CPU") -> Json:
    return {"result": "passed", "check": check, "evidence": evidence, "metrics": list(metrics), "device": device}


def target(**changes: Any) -> Json:
    made = {
        "artifact": {
            "folder": "targets/onnxruntime",
            "entry": "model.onnx",
            "bytes": 21,
            "sha256": HASH,
            "options": {},
        },
        "inputs": [{"name": "input_ids", "dtype": "int64", "shape": ["batch", "sequence"]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 2]}],
        "axes": {},
        "requires": {"onnxruntime": ">=1.22,<2"},
        "evidence": "executed",
        "result": "passed",
        "verdicts": [passed("quality", COSINE), passed("lowering", RELATIVE, device="ONNX Runtime CPU")],
        "placement": None,
        "latency": None,
        "golden": None,
        "notes": ["ship it whole"],
    }
    made["artifact"] = {**made["artifact"], "options": {}}  # type: ignore[dict-item]
    return {**made, **changes}


def coreml() -> Json:
    made = target(evidence="emulated", result="failed")
    made["artifact"] = {**made["artifact"], "folder": "targets/coreml", "entry": "model.mlpackage"}
    failed = {"result": "failed", "check": "lowering", "evidence": "emulated", "reason": "an output is NaN"}
    failed |= {"metrics": [LOST], "device": "MIL interpreter", "diverged": DIVERGED}
    made["verdicts"] = [passed("quality", COSINE), failed]
    return made


def refused() -> Json:
    verdict = {"result": "not-run", "check": "lowering", "reason": "aten.foo has no form here"}
    return target(artifact=None, evidence="not-run", result="not-run", verdicts=[verdict], notes=[])


def manifest_data() -> Json:
    files = {path: {"bytes": 21, "sha256": HASH} for path in ("targets/onnxruntime/model.onnx", "report.json")}
    files["targets/coreml/model.mlpackage"] = files["report.json"]
    return {
        "format": "planish-bundle",
        "version": 1,
        "sha256": UNSEALED,
        "name": "tiny-int8",
        "created": "2026-11-28T10:00:00Z",
        "planish": "0.1.0",
        "task": "text-classification",
        "labels": {"0": "no", "1": "yes"},
        "recipe": {"name": "int8", "weights": {"bits": 8, "group": 0, "symmetric": True}},
        "source": {
            "location": "tiny-bert",
            "kind": "folder",
            "revision": None,
            "architecture": "BertModel",
            "model_type": "bert",
            "license": {"id": "apache-2.0", "files": []},
            "files": [{"name": "model.safetensors", "bytes": 64, "sha256": HASH}],
        },
        "request": {"model": "tiny-bert", "recipe": "int8", "gates": {"cosine": 0.99, "capture": None}, "threads": 1},
        "tools": {"python": "3.11.7", "platform": "Linux x86_64", "packages": {"torch": "2.13.0"}},
        "result": "failed",
        "verdicts": [passed("capture", RELATIVE)],
        "targets": {"onnxruntime": target(), "coreml": coreml(), "executorch": refused()},
        "tokenizer": None,
        "notes": ["weights are tied"],
        "files": files,
    }


def drift(of: str, scale: float = 1.0, modules: list[str] = MODULES) -> Json:
    layers = [
        {"node": f"n{i}", "op": "linear", "module": m, "largest": 0.1, "typical": scale * 1e-3 * (i + 1)}
        for i, m in enumerate(modules)
    ]
    return {"of": of, "case": "short", "reason": "", "layers": layers}


def report_data() -> Json:
    placed = [{"node": "n0", "op": "MatMul", "where": "accelerated", "unit": "Gpu", "reason": "", "module": "a"}]
    placed += [
        {"node": f"n{i}", "op": "Gather", "where": "fallback", "unit": "Cpu", "reason": "no table", "module": f"e.{i}"}
        for i in range(1, 6)
    ]
    speed = {
        "device": "ONNX Runtime CPU",
        "versions": {"onnxruntime": "1.32.0"},
        "threads": 1,
        "seconds": {"short": [0.01, 0.002, 0.004], "sample0": [0.2], "sample1": [0.4]},
        "tokens": {"short": 12, "sample0": 128, "sample1": 128},
        "load_seconds": 0.25,
        "peak_bytes": 300_000_000,
        "start_bytes": 200_000_000,
    }
    silent = {"of": "lowering", "case": "", "reason": "this runner shows no inner values", "layers": []}
    return {
        "format": "planish-report",
        "version": 1,
        "weights": [
            {"name": f"{m}.weight", "before": 4000, "after": 1000, "format": "int8 per channel"} for m in MODULES
        ]
        + [{"name": "encoder.layer.0.bias", "before": 400, "after": 400, "format": "float32"}],
        "refused": [{"node": "pooler (aten.linear)", "reason": "not in the recipe", "module": "pooler"}],
        "targets": {
            "onnxruntime": {
                "placement": {"source": "kernel table", "nodes": placed, "violations": [], "advice": ["keep it short"]},
                "speed": speed,
                "drift": [drift("quantisation"), drift("lowering", 1e-3)],
            },
            "coreml": {"placement": None, "speed": None, "drift": [drift("quantisation"), silent]},
            "executorch": {},
        },
    }


def write(at: Path, data: Json | None = None) -> Path:
    """A bundle on the disk, as far as a report reads it."""
    told = copy.deepcopy(data or manifest_data())
    at.mkdir()
    (at / "report.json").write_bytes(json_bytes(report_data()))
    entry = fingerprint(at / "report.json")
    told["files"]["report.json"] = {"bytes": entry.bytes, "sha256": entry.sha256}
    (at / "manifest.json").write_bytes(dump_manifest(Manifest.model_validate_json(json.dumps(told))))
    return at
