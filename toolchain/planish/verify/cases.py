"""Inputs for checks: real samples, arranged as an artifact takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from planish_passes.program import Port

Sample = Mapping[str, Tensor]
MASK = "attention_mask"


@dataclass(frozen=True)
class Case:
    """One call: named inputs, and which positions of the sequence hold text."""

    name: str
    inputs: Mapping[str, Tensor]

    @property
    def mask(self) -> Tensor | None:
        """bool [B, S], or None when there is no padding mask."""
        mask = self.inputs.get(MASK)
        return None if mask is None else mask.bool()


def batches(samples: Sequence[Sample], ports: Sequence[Port], pad: int, budget: int = 1024) -> list[Case]:
    """All samples in padded batches of similar length (dynamic shapes), at most `budget` tokens or 16 samples each."""
    groups: list[list[Sample]] = []
    for sample in sorted(samples, key=_length):
        room = bool(groups) and len(groups[-1]) < 16 and (len(groups[-1]) + 1) * _length(sample) <= budget
        groups[-1].append(sample) if room else groups.append([sample])
    return [_case(f"batch{i}", g, ports, pad, max(map(_length, g))) for i, g in enumerate(groups)]


def edge_cases(samples: Sequence[Sample], ports: Sequence[Port], pad: int, longest: int) -> list[Case]:
    """Dynamic shapes: the shortest, a middle one, a padded batch of mixed lengths, the maximum length.

    Where the batch is fixed, the middle one alone is padded.
    """
    ordered = sorted(samples, key=_length)
    short, middle, long = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    mixed = [short, ordered[-2], middle]
    rows = mixed if isinstance(ports[0].shape[0], str) else [middle]
    cases = [
        _case("short", [short], ports, pad, _length(short)),
        _case("middle", [middle], ports, pad, _length(middle)),
    ]
    cases.append(_case("padded", rows, ports, pad, max(map(_length, mixed))))
    if _length(long) > 0:
        reach = min(_length(long), longest)
        cases.append(_case("longest", [_cut(long, reach)], ports, pad, reach))
    return cases


def fixed_cases(samples: Sequence[Sample], ports: Sequence[Port], pad: int, limit: int = 8) -> list[Case]:
    """Fixed shapes: samples of all lengths, cut or padded to the artifact's size; first and last are the extremes."""
    ordered = sorted(samples, key=_length)
    step = max(1, (len(ordered) - 1) // max(limit - 1, 1))
    chosen = [*ordered[:-1:step][: limit - 1], ordered[-1]]
    first = ports[0].shape
    batch, length = int(first[0]), _sequence(ports)
    cases = []
    for number in range(len(chosen)):
        group = [_cut(chosen[(number + k) % len(chosen)], length) for k in range(batch)]
        cases.append(_case(f"sample{number}", group, ports, pad, length))
    return cases


def named_cases(samples: Sequence[Sample], ports: Sequence[Port], pad: int, lengths: Sequence[int]) -> list[Case]:
    """Lengths that an artifact names: for each, the longest sample (cut to it) and the shortest (padded)."""
    ordered = sorted(samples, key=_length)
    return [
        _case(f"{name}{length}", [_cut(sample, length)], ports, pad, length)
        for length in lengths
        for name, sample in (("filled", ordered[-1]), ("padded", ordered[0]))
    ]


def _sequence(ports: Sequence[Port]) -> int:
    return next((int(p.shape[1]) for p in ports if p.name in (MASK, "input_ids")), 0)


def _length(sample: Sample) -> int:
    return int(sample[MASK].shape[1]) if MASK in sample else 0


def _cut(sample: Sample, length: int) -> Sample:
    if not length or _length(sample) <= length:
        return sample
    # The last token (a separator) stays: it is what models were trained to see at the end.
    return {k: torch.cat([t[:, : length - 1], t[:, -1:]], dim=1) for k, t in sample.items()}


def _case(name: str, group: Sequence[Sample], ports: Sequence[Port], pad: int, length: int) -> Case:
    inputs: dict[str, Tensor] = {}
    for port in ports:
        rows = [_fit(s, port, pad, length) for s in group]
        inputs[port.name] = torch.cat(rows).to(port.dtype)
    return Case(name, inputs)


def _fit(sample: Sample, port: Port, pad: int, length: int) -> Tensor:
    tensor = sample.get(port.name)
    if tensor is None:  # an input that the tokenizer does not make: token types of a single text
        tensor = torch.zeros_like(next(iter(sample.values())))
    if not length:
        return tensor
    return torch.nn.functional.pad(tensor, (0, length - tensor.shape[1]), value=pad if port.name == "input_ids" else 0)
