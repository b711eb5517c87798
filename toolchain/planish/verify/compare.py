"""Numbers that say how far two outputs are apart; padded positions do not count."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from planish.verify.cases import Case

Outputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Worst:
    """The worst value over cases and outputs, and where it was."""

    value: float
    case: str


def valid(tensor: Tensor, case: Case) -> Tensor:
    """The part of an output that means something: [positions, ...] where a padding mask applies, else the tensor."""
    mask = case.mask
    if mask is not None and tensor.dim() >= 2 and tensor.shape[:2] == mask.shape:
        return tensor[mask]
    return tensor


def worst(cases: Sequence[Case], found: Mapping[str, Outputs], truth: Mapping[str, Outputs], kind: str) -> Worst:
    """The worst `max_abs`, `relative`, `cosine` or `cosine_all` over all cases and outputs.

    `relative` is max|a - b| / max|b| of one output in one case; `cosine` is the smallest over rows of the last axis
    (tokens, samples); `cosine_all` is that of the whole output of a case as one vector.
    """
    measure = {"max_abs": _max_abs, "relative": _relative, "cosine": _cosine, "cosine_all": _cosine_all}[kind]
    pick = min if kind.startswith("cosine") else max
    results = [
        Worst(measure(valid(found[c.name][o].double(), c), valid(truth[c.name][o].double(), c)), c.name)
        for c in cases
        for o in truth[c.name]
    ]
    lost = [r for r in results if math.isnan(r.value)]
    return lost[0] if lost else pick(results, key=lambda r: r.value)


def agreement(cases: Sequence[Case], found: Mapping[str, Outputs], truth: Mapping[str, Outputs]) -> float:
    """Share (0..1) of rows of the last axis with the same argmax."""
    same = total = 0
    for case in cases:
        for name in truth[case.name]:
            a, b = valid(found[case.name][name], case), valid(truth[case.name][name], case)
            same += int((a.argmax(-1) == b.argmax(-1)).sum())
            total += a[..., 0].numel()
    return same / total if total else 1.0


def pooled(cases: Sequence[Case], outputs: Mapping[str, Outputs], name: str) -> Tensor:
    """Mean over valid positions, normalised: [rows, features] float64, as sentence embeddings are made.

    Without a mask, outputs of one size are whole vectors (pictures); texts of several lengths are means of all tokens.
    """
    rows = []
    lengths = {outputs[case.name][name][0].numel() for case in cases if case.mask is None}
    for case in cases:
        hidden, mask = outputs[case.name][name].double(), case.mask
        if mask is None:
            rows.append(hidden.flatten(1) if len(lengths) == 1 else _mean(hidden))
        else:
            weight = mask.double()[..., None]
            rows.append((hidden * weight).sum(1) / weight.sum(1))
    return torch.nn.functional.normalize(torch.cat(rows), dim=-1)


def _mean(hidden: Tensor) -> Tensor:
    return hidden.reshape(len(hidden), -1, hidden.shape[-1]).mean(1)


def _max_abs(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max()) if a.numel() else 0.0


def _relative(a: Tensor, b: Tensor) -> float:
    scale = float(b.abs().max()) if b.numel() else 0.0
    return _max_abs(a, b) / max(scale, 1e-12)


def _cosine(a: Tensor, b: Tensor) -> float:
    if a.dim() == 4:  # feature maps: one vector per picture
        a, b = a.flatten(1), b.flatten(1)
    if a.shape[-1] == 1:
        a, b = a.flatten()[None], b.flatten()[None]
    return float(similarity(a, b).min()) if a.numel() else 1.0


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of each row; 1 where the rows are equal, zero rows included."""
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=-1)
    return torch.where((a == b).all(dim=-1), torch.ones_like(cosine), cosine)


def _cosine_all(a: Tensor, b: Tensor) -> float:
    return _cosine(a.flatten()[None], b.flatten()[None])
