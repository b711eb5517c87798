"""A file of measurements that contradicts nothing; tests spoil it."""

from __future__ import annotations

from typing import Any

from planish.bench.stats import summary

Json = dict[str, Any]
SEAL, ARTIFACT = "a" * 64, "b" * 64


def row(subject: str, measure: str, samples: list[float], case: str = "", count: int | None = None) -> Json:
    found = summary(samples)
    rate = None if count is None else {"unit": "tokens/s", "value": count / found.median, "count": count}
    return {
        "subject": subject,
        "measure": measure,
        "case": case,
        "threads": 1,
        "unit": "bytes" if measure.endswith("memory") else "s",
        "n": found.n,
        "median": found.median,
        "p95": found.p95,
        "low": found.low,
        "high": found.high,
        "spread": found.spread,
        "samples": samples,
        "rate": rate,
        "conditions": {"prompt_tokens": 128} if count else {},
    }


def subject(id: str, seal: str = SEAL, artifact: str = ARTIFACT, target: str = "onnxruntime") -> Json:
    return {
        "id": id,
        "bundle": f"tiny-{id}",
        "seal": seal,
        "target": target,
        "artifact": artifact,
        "bytes": 406,
        "recipe": "int8",
        "evidence": "executed",
        "runtime": "ONNX Runtime CPU on a Pocket 3",
        "versions": {"onnxruntime": "1.32.0"},
    }


def bench(seal: str = SEAL, artifact: str = ARTIFACT) -> Json:
    """Two subjects, the first of the bundle with this seal."""
    environment = {
        "device": "Pocket 3",
        "system": "PocketOS 7",
        "processor": "P-300",
        "cores": 8,
        "memory_bytes": 8_000_000_000,
        "thermal": "not measured",
        "energy": "not measured",
        "power": "battery",
        "load": None,
        "notes": ["screen on"],
    }
    a, b = [0.010, 0.011, 0.012, 0.0125], [0.020, 0.021, 0.0235, 0.026]
    windows = [{"at": 15.0 * n, "n": 100, "median": 0.1 + 0.01 * n} for n in range(4)]
    return {
        "format": "planish-bench",
        "version": 1,
        "created": "2026-11-28T12:00:00Z",
        "tool": {"name": "pocket app", "version": "2.1"},
        "environment": environment,
        "method": {"rounds": 4, "warmups": 2, "calls": 1, "order": "in turn", "clock": "monotonic"},
        "subjects": [subject("A", seal, artifact), subject("B", "c" * 64, "d" * 64)],
        "rows": [
            row("A", "latency", a, "short"),
            row("B", "latency", b, "short"),
            row("A", "prefill", [0.5, 0.51, 0.52], count=128),
            row("A", "token", [0.01 + 0.0001 * n for n in range(24)]),
            row("A", "peak_memory", [3e8, 3e8, 3e8]),
            row("B", "peak_memory", [3e8, 3e8, 3e8]),
        ],
        "ratios": [
            {"of": "B", "to": "A", "measure": "latency", "case": "short", "threads": 1, "pairs": 4,
             "median": 1.95, "low": 1.9, "high": 2.1}
        ],
        "sustained": [
            {"subject": "A", "measure": "latency", "case": "short", "threads": 1, "seconds": 60.0, "windows": windows,
             "drift": 0.3}
        ],
    }  # fmt: skip
