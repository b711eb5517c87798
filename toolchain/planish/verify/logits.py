"""Logits of language models: inputs of calls with their caches, what a program makes of a text, and distances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from planish.tasks.generation import SLOTS, TOKENS
from planish_passes.interpret import interpret
from planish_passes.program import Program

LOGITS = "logits"
BLOCK = 1 << 20  # logits that are float64 at a time


def feed(program: Program, tokens: Tensor, past: Mapping[str, Tensor], start: int = 0) -> dict[str, Tensor]:
    """Inputs of one call: new tokens [1, Q] at the slots from `start` on, and the cache so far."""
    slots = torch.arange(start, start + tokens.shape[1])[None]
    given = {TOKENS: tokens, SLOTS: slots, **past}
    return {p.name: given[p.name] for p in program.inputs if p.name in given}


def empty_cache(program: Program) -> dict[str, Tensor]:
    """Cache inputs of length 0, batch 1."""
    inner = {i for _, i in program.states}
    sizes = {"batch": 1, "past": 0}
    return {
        p.name: torch.zeros([sizes[d] if isinstance(d, str) else d for d in p.shape], dtype=p.dtype)
        for p in program.inputs
        if p.name in inner
    }


def whole(program: Program, tokens: Tensor) -> dict[str, Tensor]:
    """Inputs of one call with a whole text [1, N]."""
    return feed(program, tokens, empty_cache(program))


def one_call(program: Program, tokens: Tensor) -> Tensor:
    """Logits [1, N, V] of a program for a whole text."""
    return interpret(program, whole(program, tokens))[LOGITS]


def in_calls(program: Program, tokens: Tensor, cuts: Sequence[int]) -> Tensor:
    """The same, in several calls that hand the cache on."""
    past, at, logits = empty_cache(program), 0, []
    for length in cuts:
        result = interpret(program, feed(program, tokens[:, at : at + length], past, at))
        past = {inner: result[outer] for outer, inner in program.states}
        logits.append(result[LOGITS])
        at += length
    return torch.cat(logits, 1)


def divergence(found: Tensor, truth: Tensor) -> Tensor:
    """Kullback-Leibler divergence KL(truth || found) in nats, per position: [positions] float64."""
    width = truth.shape[-1]
    step = max(1, BLOCK // width)
    pairs = zip(found.reshape(-1, width).split(step), truth.reshape(-1, width).split(step), strict=True)
    return torch.cat([_divergence(*pair) for pair in pairs])


def _divergence(found: Tensor, truth: Tensor) -> Tensor:
    p, q = truth.double().log_softmax(-1), found.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def top1(found: Tensor, truth: Tensor) -> float:
    """Share (0..1) of positions whose most probable token is the same."""
    return float((found.argmax(-1) == truth.argmax(-1)).double().mean())
