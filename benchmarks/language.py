"""planish's int4 artifact of a language model against the GenAI builder's, on the same weights, in one run.

    python benchmarks/language.py MODEL [--rounds 6] [--threads 2] [--gguf FILE]

Prints planish against the peer: decode and prefill speed through onnxruntime-genai (above 1 is better), both in turn;
sizes; KL divergence and top-1 agreement of both with the original on one text; CPU seconds and peak memory of builds.
With --gguf, llama.cpp decodes that file in turn with planish (pip install xllamacpp; give the same weights).
Needs onnxruntime-genai (its builder needs torch and transformers, which are here). Figures of a busy machine differ by
5 % and more between equal runs: read the medians, on a quiet one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PROMPT, PAST, NEW, TEXT = 128, 64, 64, 256

_TIMED = """
import json, os, resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=sys.stderr)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"code": code, "cpu": used.ru_utime + used.ru_stime, "rss": used.ru_maxrss * 1024}))
"""


def measured(command: list[str]) -> dict[str, float]:
    """Run a build; CPU seconds and peak resident bytes of it."""
    done = subprocess.run([sys.executable, "-c", _TIMED, *command], stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if found["code"]:
        raise SystemExit(f"{' '.join(command)} failed with {found['code']:g}")
    return found


def builds(model: str, into: Path) -> dict[str, dict[str, Any]]:
    """Both artifacts: folder, CPU seconds, peak memory. planish once quickly (for time and memory) and once well."""
    peer, quick, well = into / "peer", into / "quick.planish", into / "well.planish"
    builder = ["-m", "onnxruntime_genai.models.builder", "-i", model, "-o", str(peer), "-p", "int4", "-e", "cpu"]
    made = {"peer": measured([sys.executable, *builder, "-c", str(into / "cache")])}
    compile_ = [sys.executable, "-m", "planish.cli", "compile", model, "-t", "onnxruntime", "-r", "int4"]
    made["planish"] = measured([*compile_, "--rounding", "nearest", "--no-verify", "-o", str(quick)])
    made["planish, default"] = measured([*compile_, "-o", str(well), "--keep-failed"])
    made["peer"]["folder"], made["planish"]["folder"] = peer, well / "targets" / "onnxruntime"
    return made


def weights_of(folder: Path) -> int:
    """Bytes of graph and weights, without tokenizer and configuration; files with the same weights count once."""
    ort = folder / "model.ort"
    names = ["model.onnx", "model.ort"] if ort.is_file() else ["model.onnx", "model.onnx.data"]
    return sum((folder / n).stat().st_size for n in names)


def quality(folder: Path, tokens: np.ndarray[Any, Any], truth: np.ndarray[Any, Any], genai: Any) -> tuple[float, float]:
    """Mean KL divergence and top-1 agreement with the original, token by token."""
    generator = started(genai, folder, len(tokens) + 2)
    losses, same = [], 0
    for position, token in enumerate(tokens):
        generator.append_tokens(np.array([token], np.int32))
        found = log_softmax(np.asarray(generator.get_logits(), np.float64)[0, -1])
        wanted = log_softmax(truth[position])
        losses.append(float((np.exp(wanted) * (wanted - found)).sum()))
        same += int(found.argmax() == wanted.argmax())
    return statistics.mean(losses), same / len(tokens)


def log_softmax(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Of one row, float64."""
    shifted = x - x.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def started(genai: Any, folder: Path, longest: int) -> Any:
    """A greedy generator without tokens."""
    options = genai.GeneratorParams(loaded(genai, folder))
    options.set_search_options(max_length=longest, do_sample=False)
    return genai.Generator(loaded(genai, folder), options)


_LOADED: dict[Path, Any] = {}
_THREADS = [2]


def loaded(genai: Any, folder: Path) -> Any:
    """One session per artifact, same threads and the same waiting for both."""
    if folder not in _LOADED:
        config = genai.Config(str(folder))
        overlay = {"session_options": {"intra_op_num_threads": _THREADS[0], "session.intra_op.allow_spinning": "0"}}
        config.overlay(json.dumps({"model": {"decoder": overlay}}))
        _LOADED[folder] = genai.Model(config)
    return _LOADED[folder]


def prefill(genai: Any, folder: Path) -> float:
    """Seconds of one prompt of `PROMPT` tokens."""
    generator = started(genai, folder, PROMPT + 2)
    begin = time.perf_counter()
    generator.append_tokens(np.arange(5, 5 + PROMPT, dtype=np.int32))
    generator.get_logits()
    return time.perf_counter() - begin


def decode(genai: Any, folder: Path) -> float:
    """Seconds of `NEW` tokens behind `PAST`."""
    generator = started(genai, folder, PAST + NEW + 2)
    generator.append_tokens(np.arange(5, 5 + PAST, dtype=np.int32))
    begin = time.perf_counter()
    for token in range(NEW):
        generator.append_tokens(np.array([token + 300], np.int32))
        generator.get_logits()
    return time.perf_counter() - begin


def ratio(run: Callable[[Any, Path], float], genai: Any, ours: Path, peer: Path, rounds: int) -> tuple[float, float]:
    """Median of paired peer / planish times, and planish's median seconds."""
    run(genai, ours), run(genai, peer)
    pairs = [(run(genai, ours), run(genai, peer)) for _ in range(rounds)]
    return statistics.median(b / a for a, b in pairs), statistics.median(a for a, _ in pairs)


def against_llama_cpp(genai: Any, ours: Path, gguf: Path, rounds: int) -> None:
    """Print planish's speed against llama.cpp's, in turn."""
    script = Path(__file__).with_name("llama_cpp.py")
    command = [sys.executable, str(script), str(gguf), str(_THREADS[0]), str(PROMPT), str(NEW)]
    pairs: list[tuple[float, float]] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        assert peer.stdin is not None
        assert peer.stdout is not None
        for _ in range(rounds + 1):
            peer.stdin.write("go\n")
            peer.stdin.flush()
            line = peer.stdout.readline()
            if not line:
                raise SystemExit("llama.cpp stopped: is xllamacpp installed, and the file a GGUF one?")
            told = json.loads(line)
            pairs.append((told["prompt"] / prefill(genai, ours), told["new"] / decode(genai, ours)))
        peer.stdin.close()
    first, later = zip(*pairs[1:], strict=True)  # the first round warms both up
    size = f"{gguf.stat().st_size / 1e6:.1f} MB"
    print(f"llama.cpp      {size}; planish decodes at {statistics.median(later):.3f}x its speed,", end=" ")
    print(f"reads a prompt at {statistics.median(first):.3f}x")


def original(model: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Tokens of one text, and the original model's logits."""
    from pydoc_data.topics import topics

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = "\n\n".join(topics[name] for name in sorted(topics))[: 40 * TEXT]
    ids = AutoTokenizer.from_pretrained(model)(text, return_tensors="pt").input_ids[:, :TEXT]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(input_ids=ids).logits
    return ids[0].numpy(), logits[0].double().numpy()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gguf", type=Path, help="the same weights for llama.cpp")
    given = parser.parse_args()
    _THREADS[0] = given.threads
    import onnxruntime_genai as genai

    with tempfile.TemporaryDirectory(prefix="planish-bench-") as scratch:
        made = builds(given.model, Path(scratch))
        ours, peer = made["planish"]["folder"], made["peer"]["folder"]
        print(f"size MB        planish {weights_of(ours) / 1e6:.1f}   peer {weights_of(peer) / 1e6:.1f}")
        for name, one in made.items():
            print(f"build          {name}: {one['cpu']:.1f} CPU s, peak {one['rss'] / 1e9:.2f} GB")
        for name, run, count in (("decode", decode, NEW), ("prefill", prefill, PROMPT)):
            times, seconds = ratio(run, genai, ours, peer, given.rounds)
            print(f"{name:14} {times:.3f}x the peer's speed ({count / seconds:.0f} tokens/s)")
        if given.gguf is not None:
            against_llama_cpp(genai, ours, given.gguf, given.rounds)
        tokens, truth = original(given.model)
        for name, folder in (("planish", ours), ("peer", peer)):
            loss, same = quality(folder, tokens, truth, genai)
            print(f"quality        {name}: KL {loss:.3f}, top-1 {same:.1%} on {len(tokens)} tokens")


if __name__ == "__main__":
    main()
