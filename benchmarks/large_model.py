"""Memory and time of compiling a large language model: Llama's shapes with random bfloat16 weights.

    python benchmarks/large_model.py FOLDER [--shape 8b] [--layers 32] [--keep]
    python benchmarks/large_model.py FOLDER --shape 1b --target executorch

Writes the checkpoint (16 GB with all layers) into FOLDER, compiles it in a process of its own, runs one token of the
result in another, and prints what both took. Peaks: maxrss is the system's own figure and counts pages of mapped files;
anonymous memory is what the process allocated, sampled every 10 ms (shorter spikes are missed). Ends with 1 when a
goal is missed, and with 77 when the disk is too small.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
GOALS = {  # GB, GB, seconds; executorch builds its file in memory
    "8b": {"maxrss": 2.5, "anonymous": 1.5, "wall": 600.0},
    "1b": {"maxrss": 2.5, "anonymous": 1.5, "wall": 600.0},
    "1b executorch": {"maxrss": 10.0},
}
LAYERS = {"8b": 32, "1b": 16}
SHARD = 4 << 30  # bytes
BLOCK = 4_194_301  # random elements; a prime, so that no tensor begins at the same place as another
SKIPPED = 77
SHAPE: dict[str, Any] = {  # Llama-3.1-8B's
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "tie_word_embeddings": False,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
SMALL: dict[str, Any] = {  # what is different in Llama-3.2-1B
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "head_dim": 64,
    "tie_word_embeddings": True,
    "rope_parameters": {**SHAPE["rope_parameters"], "factor": 32.0},
}


def tensors(layers: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the checkpoint."""
    hidden, inner, vocabulary = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["vocab_size"]
    narrow = hidden // SHAPE["num_attention_heads"] * SHAPE["num_key_value_heads"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name, shape in {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (narrow, hidden),
            "self_attn.v_proj": (narrow, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }.items():
            found[f"{prefix}{name}.weight"] = shape
    found["model.norm.weight"] = (hidden,)
    return found if SHAPE["tie_word_embeddings"] else {**found, "lm_head.weight": (vocabulary, hidden)}


def write_checkpoint(folder: Path, layers: int) -> int:
    """Sharded safetensors and a config; the number of parameters. No two tensors are alike: runtimes share what is."""
    from transformers import LlamaConfig

    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(num_hidden_layers=layers, dtype="bfloat16", **SHAPE)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in tensors(layers).items():
        if sum(2 * torch.Size(s).numel() for s in (*shards[-1].values(), shape)) > SHARD and shards[-1]:
            shards.append({})
        shards[-1][name] = shape
    noise = (torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)) * 0.02).to(torch.bfloat16)
    noise, total = torch.cat([noise, noise]), 0
    placed: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        total += _write_shard(folder / file, shard, noise, total)
        placed |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": 2 * total}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]], noise: torch.Tensor, written: int) -> int:
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    ones = torch.ones(SHAPE["hidden_size"], dtype=torch.bfloat16)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            left = torch.Size(shape).numel()
            while left:
                start = written % BLOCK
                source = ones if len(shape) == 1 else noise[start : start + BLOCK]
                count = min(left, len(source))
                file.write(memoryview(source[:count].view(torch.uint8).numpy()))
                left, written = left - count, written + count
    return at // 2


@dataclass(frozen=True)
class Cost:
    """What a process took: seconds, seconds, GB, GB; and its exit code."""

    wall: float
    cpu: float
    maxrss: float
    anonymous: float
    code: int

    def __str__(self) -> str:
        return (
            f"{self.wall:.0f} s wall, {self.cpu:.0f} s CPU, maxrss {self.maxrss:.2f} GB, "
            f"anonymous {self.anonymous:.2f} GB, exit code {self.code}"
        )


def measure(command: list[str]) -> Cost:
    """Run a command; memory of the process itself, CPU seconds of it and its children."""
    began = time.perf_counter()
    process = subprocess.Popen(command)
    peak = [0.0]
    watcher = threading.Thread(target=_watch, args=(process.pid, peak), daemon=True)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    watcher.join()
    cpu = usage.ru_utime + usage.ru_stime
    return Cost(time.perf_counter() - began, cpu, usage.ru_maxrss / 1024**2, peak[0], process.returncode)


def _watch(pid: int, peak: list[float]) -> None:
    status = Path(f"/proc/{pid}/status")
    while True:
        try:
            lines = status.read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            return
        found = next((line for line in lines if line.startswith("RssAnon")), None)
        if found is None:
            return  # it has ended
        peak[0] = max(peak[0], int(found.split()[1]) / 1024**2)
        time.sleep(0.01)


def run_token(path: Path) -> None:
    """Load an artifact in onnxruntime, run one token with an empty past, print what came out."""
    import numpy
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    began = time.perf_counter()
    session = onnxruntime.InferenceSession(str(path), options)
    loaded = time.perf_counter() - began
    feed = {}
    for port in session.get_inputs():
        kind = {"tensor(float)": numpy.float32, "tensor(float16)": numpy.float16, "tensor(int32)": numpy.int32}
        shape = [d if isinstance(d, int) else 0 if "past" in d and "+" not in d else 1 for d in port.shape]
        feed[port.name] = numpy.zeros(shape, kind.get(port.type, numpy.int64))
        if port.name == "attention_mask":
            feed[port.name][:] = 1
    began = time.perf_counter()
    logits = session.run(["logits"], feed)[0]
    if not numpy.isfinite(logits).all() or not logits.any():
        sys.exit("the logits are not finite, or all zero")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(f"  loaded in {loaded:.1f} s, one token in {time.perf_counter() - began:.2f} s, ", end="")
    print(f"logits {list(logits.shape)} {logits.dtype}, maxrss {peak:.2f} GB")


def run_token_executorch(path: Path) -> None:
    """Load a .pte, run one token, print what came out."""
    import executorch.kernels.quantized  # noqa: F401  (registers kernels)
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  (registers kernels)
    from executorch.runtime import Runtime

    began = time.perf_counter()
    program = Runtime.get().load_program(str(path))
    method = program.load_method("forward")
    loaded = time.perf_counter() - began
    began = time.perf_counter()
    assert method is not None
    logits = method.execute([torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)])[0]
    if not torch.isfinite(logits).all() or not logits.any():
        sys.exit("the logits are not finite, or all zero")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(f"  loaded in {loaded:.1f} s, one token in {time.perf_counter() - began:.2f} s, ", end="")
    print(f"logits {list(logits.shape)} {logits.dtype}, maxrss {peak:.2f} GB")


def _missed(cost: Cost, goals: dict[str, float]) -> list[str]:
    return [
        f"{name} {getattr(cost, name):.2f} > {limit}" for name, limit in goals.items() if getattr(cost, name) > limit
    ]


def main() -> int:
    """Make, compile, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=("8b", "1b"), default="8b", help="Llama-3.1-8B's or Llama-3.2-1B's")
    parser.add_argument("--layers", type=int, help="default: all of the shape's")
    parser.add_argument("--recipe", default="int4")
    parser.add_argument("--target", action="append", help="default: onnxruntime and directml")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoint and the bundle")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        (run_token_executorch if given.run.suffix == ".pte" else run_token)(given.run)
        return 0
    if given.shape == "1b":
        SHAPE.update(SMALL)
    layers = given.layers or LAYERS[given.shape]
    targets = given.target or ["onnxruntime", "directml"]
    parameters = sum(torch.Size(s).numel() for s in tensors(layers).values())
    # bfloat16, and per target (and once as scratch) 4 bits with scales and zero points; the tables may stay float16
    tables = 2 * SHAPE["vocab_size"] * SHAPE["hidden_size"]
    needed = 2 * parameters + int((len(targets) + 1) * 0.65 * parameters) + len(targets) * 2 * tables
    given.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(given.folder).free
    if free < needed:
        print(f"skipped: {needed / 1e9:.0f} GB of disk are needed, {free / 1e9:.0f} GB are free in {given.folder}")
        return SKIPPED
    checkpoint, bundle = given.folder / "checkpoint", given.folder / "large.planish"
    began = time.perf_counter()
    if not (checkpoint / "model.safetensors.index.json").exists():
        write_checkpoint(checkpoint, layers)
    print(f"{layers} layers, {parameters / 1e9:.2f} G parameters, ready after {time.perf_counter() - began:.0f} s")
    shutil.rmtree(bundle, ignore_errors=True)
    command = [sys.executable, "-m", "planish.cli", "compile", str(checkpoint), "-r", given.recipe, "--no-verify", "-q"]
    command += ["-o", str(bundle), *(part for t in targets for part in ("-t", t))]
    os.environ["TMPDIR"] = str(given.folder)  # scratch files belong on the disk that was checked
    cost = measure(command)
    print(f"compile -t {' -t '.join(targets)} -r {given.recipe}: {cost}")
    goals = GOALS.get(f"{given.shape} {' '.join(targets)}", GOALS[given.shape])
    faults = [*_missed(cost, goals), *([f"compile ended with {cost.code}"] if cost.code else [])]
    for target in targets if not cost.code else ():
        files = list((bundle / "targets" / target).iterdir())
        print(f"{target}: {sum(f.stat().st_size for f in files) / 1e9:.2f} GB")
        file = "model.pte" if target == "executorch" else "model.onnx"
        again = [sys.executable, __file__, str(given.folder), "--run", str(bundle / "targets" / target / file)]
        ran = measure(again)
        print(f"  {ran}")
        faults += [f"{target} did not run"] if ran.code else []
    if not given.keep:
        shutil.rmtree(bundle, ignore_errors=True)
        shutil.rmtree(checkpoint)
    print("all goals met" if not faults else f"missed: {'; '.join(faults)}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
