"""What a runner tells of its time and memory, and what it does not."""

from __future__ import annotations

from typing import Any

import torch

from planish.speed import measured
from planish_targets.contract import Evidence
from planish_targets.runner import Ran

INPUTS = {"one": {"input_ids": torch.zeros(2, 5, dtype=torch.int64)}, "two": {"pixels": torch.zeros(1, 3)}}


def told(**device: Any) -> Ran:
    return Ran({}, device, Evidence.EXECUTED)


def test_everything_told() -> None:
    ran = told(
        seconds={"one": [0.3, 0.1, 0.2], "two": [0.5], "warm": [9.0]},
        versions={"onnxruntime": "1.32.0"},
        load_seconds=0.25,
        peak_rss_bytes=300,
        start_rss_bytes=100,
    )
    speed = measured(ran, INPUTS, "a CPU", 2)
    assert speed.seconds == {"one": (0.3, 0.1, 0.2), "two": (0.5,)}
    assert speed.medians() == {"one": 0.2, "two": 0.5}
    assert speed.tokens == {"one": 10}
    assert (speed.load_seconds, speed.start_bytes, speed.peak_bytes) == (0.25, 100, 300)
    assert (speed.device, speed.versions, speed.threads) == ("a CPU", {"onnxruntime": "1.32.0"}, 2)


def test_what_is_not_told_or_makes_no_sense_is_not_measured() -> None:
    speed = measured(told(load_seconds="fast", peak_rss_bytes=True, versions="1.0"), INPUTS, "a CPU", 1)
    assert (speed.load_seconds, speed.peak_bytes, speed.start_bytes) == (None, None, None)
    assert (speed.seconds, speed.versions) == ({}, {})
