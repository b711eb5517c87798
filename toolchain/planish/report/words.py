"""What grades, checks and metrics mean, in words."""

from __future__ import annotations

from dataclasses import dataclass

from planish_targets.contract import Evidence

GRADES = {
    Evidence.EXECUTED: "The target's own runtime ran the artifact.",
    Evidence.EXECUTED_ARM64_EMULATED: "The target's own runtime for arm64 ran it on a CPU that QEMU emulates: "
    "its own kernels, but no device.",
    Evidence.EMULATED: "A stand-in ran it: a reference interpreter, or the same file in another execution provider. "
    "What the target's own kernels do otherwise is not seen.",
    Evidence.STRUCTURAL: "Nothing ran. The file was checked against published rules.",
    Evidence.NOT_RUN: "Nothing can be said; the reason is given.",
}


@dataclass(frozen=True)
class Check:
    """A check in words."""

    title: str
    asks: str


CHECKS = {
    "capture": Check("Trace", "Does the traced program compute what the original model computes?"),
    "weights": Check("Weights", "Are the integers right: near enough to the checkpoint, and bit-equal in every file?"),
    "palettes": Check("Palettes", "Are tables and indices in the files those that were chosen, bit by bit?"),
    "quality": Check("Quality", "Did quantisation hurt? The program as this target computes it, to the original."),
    "lowering": Check("Lowering", "Did lowering break? The artifact on a runtime, to that program."),
    "decoding": Check("Decoding", "Does the artifact, fed with its own cache token by token, stay with the program?"),
    "placement": Check("Placement", "Where is every operation expected to run?"),
    "attributes": Check("Epsilons", "Do the files state the epsilons that the model has?"),
    "size": Check("Size", "Does the artifact keep to the size that was asked for?"),
    "hashes": Check("Hashes", "Are the files those that were written?"),
    "lower": Check("Lowering", "Can this target encode the program at all?"),
}

METRICS = {
    "cosine": "cosine similarity",
    "cosine_token": "cosine similarity, worst token",
    "max_abs": "largest absolute error",
    "relative": "largest relative error",
    "agreement": "same top answer",
    "kl": "KL divergence, mean",
    "kl_max": "KL divergence, worst token",
    "kl_late": "KL divergence at a late position",
    "noise": "the program's own rounding noise",
    "step": "worst single step, in multiples of its limit",
    "steps": "rounding error, in steps of the grid",
    "bit_equal_tensors": "bit-equal tensors",
    "bit_equal_palettes": "bit-equal palettes",
    "kept_tensors": "tensors kept bit by bit",
    "equal_epsilons": "equal epsilons",
    "accelerated_share": "operations that stay on the accelerator",
    "megabytes": "size in MB",
}

UNITS = {"kl": "nats", "kl_max": "nats", "kl_late": "nats", "agreement": "share", "accelerated_share": "share"}


MEASURES = {
    "load_cold": "cold load",
    "load_warm": "warm load",
    "first_token_cold": "first token, cold",
    "first_token": "first token",
    "prefill": "prompt",
    "decode": "writing",
    "token": "one token",
    "latency": "one call",
    "peak_memory": "peak memory",
    "artifact_memory": "of it, the artifact",
}  # docs/bench.md says what each is


def check(name: str) -> Check:
    """A check in words; one that is not known keeps its name."""
    return CHECKS.get(name, Check(name.replace("_", " ").capitalize(), ""))


def metric(name: str) -> str:
    """A metric in words."""
    return METRICS.get(name, name.replace("_", " "))
