"""The inside of a decoding process (`python -m planish_targets.X.run --decode`): token requests in, tokens out.

Each line is a JSON object. First in: {"protocol": 1, "path", "options", "threads", "longest",
"states": [{"output", "input", "dtype", "shape"}]}, shape being that of the empty cache. First out: {"protocol": 1,
"device", "load_seconds", "start_rss_bytes"?, "peak_rss_bytes"?}. Then as often as wanted, in: {"tokens": [...],
"max_tokens", "stop": [...], "temperature", "top_p", "seed"}, where tokens are the whole text so far; out: {"token": id}
as they come, then {"done": "stop" | "length" | "context", "prompt_tokens", "steps", "prompt_seconds", "decode_seconds",
"peak_rss_bytes"?}. {"error": {"what", "where", "hint"}} ends the process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from planish_passes.errors import PlanishError
from planish_targets.serve import Call, Model, peak

PROTOCOL = 1


@dataclass(frozen=True)
class State:
    """A cache: what a call returns as `output` the next one takes as `input`. Tokens are axis 2.

    Args:
        output, input: names of the artifact's ports.
        dtype: name of the torch dtype, e.g. "float32".
        shape: of the empty cache, e.g. (1, 3, 0, 64).
    """

    output: str
    input: str
    dtype: str
    shape: tuple[int, ...]


@dataclass
class Session:
    """A model, and the cache of the tokens that it has seen.

    Args:
        model: one call of the artifact.
        states: its caches.
        longest: tokens that the cache may hold.
        whole_prompts: the artifact takes several tokens only when its cache is empty.
    """

    model: Model
    states: Sequence[State]
    longest: int
    whole_prompts: bool = False
    seen: list[int] = field(default_factory=list)
    cache: dict[str, Tensor] = field(default_factory=dict)

    def logits(self, tokens: Sequence[int]) -> tuple[Tensor, int]:
        """Logits [V] float32 behind a text, and how many of its tokens had to be computed for them.

        What the text has in common with the one before is taken from the cache.

        Raises:
            PlanishError: the text is empty or longer than the model's context, or the logits hold NaN.
        """
        if not 0 < len(tokens) <= self.longest:
            what = f"The text has {len(tokens)} tokens; the model takes 1 to {self.longest}."
            raise PlanishError(what, "prompt", "give a shorter text" if tokens else "give a text")
        kept = _common(self.seen, tokens[:-1])
        if self.whole_prompts and len(tokens) - kept > 1:
            kept = 0
        new = tokens[kept:]
        result = self.model(
            {
                "input_ids": torch.tensor([new]),
                "position_ids": torch.arange(kept, len(tokens))[None],
                **{s.input: self._past(s, kept) for s in self.states},
            }
        )
        self.cache = {s.input: result[s.output] for s in self.states}
        self.seen = list(tokens)
        found = result["logits"][0, -1].float()
        if bool(found.isnan().any()):
            where = f"logits of token {len(tokens) - 1}"
            raise PlanishError("The artifact computes NaN.", where, "check the bundle with `planish verify`")
        return found, len(new)

    def _past(self, state: State, length: int) -> Tensor:
        if length == 0:
            return torch.zeros(state.shape, dtype=getattr(torch, state.dtype))
        return self.cache[state.input][:, :, :length]


def decode(device: str, load: Callable[[Call], Model]) -> None:
    """Answer requests on stdin until it ends; see the module.

    Args:
        device: what computes, for people.
        load: opens the artifact.
    """
    told = _private_stdout()

    def tell(line: Mapping[str, Any]) -> None:
        told.write(json.dumps(line) + "\n")
        told.flush()

    try:
        first = json.loads(sys.stdin.readline())
        before, began = peak("start"), time.perf_counter()
        model = load(Call(Path(first["path"]), first["options"], int(first["threads"])))
        states = [State(s["output"], s["input"], s["dtype"], tuple(s["shape"])) for s in first["states"]]
        whole = first["options"].get("prompt_in_one_call") is True
        session = Session(model, states, int(first["longest"]), whole)
        loaded = time.perf_counter() - began
        tell({"protocol": PROTOCOL, "device": device, "load_seconds": loaded, **before, **peak()})
        for line in sys.stdin:
            for event in answer(session, json.loads(line)):
                tell(event)
    except PlanishError as problem:
        tell({"error": {"what": problem.what, "where": problem.where, "hint": problem.hint}})
        sys.exit(1)


def greedy(model: Model, tokens: Sequence[int], count: int, longest: int, whole_prompts: bool) -> Tensor:
    """The most probable continuation by a model with caches inside: int64 [up to `count`].

    Args:
        model: freshly opened.
        tokens: the text so far.
        count: tokens to write.
        longest, whole_prompts: see `Session`.
    """
    asked = {"tokens": tokens, "stop": (), "seed": 0, "max_tokens": count, "temperature": 0, "top_p": 1}
    events = answer(Session(model, (), longest, whole_prompts), asked)
    return torch.tensor([event["token"] for event in events if "token" in event], dtype=torch.int64)


def answer(session: Session, request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The lines that answer one request."""
    text, stop = list(request["tokens"]), frozenset(request["stop"])
    generator = torch.Generator().manual_seed(int(request["seed"]))
    began = time.perf_counter()
    found, computed = session.logits(text)
    prompt_seconds, seconds, steps, done = time.perf_counter() - began, 0.0, 0, "length"
    for number in range(int(request["max_tokens"])):
        if number:
            began = time.perf_counter()
            found, _ = session.logits(text)
            seconds, steps = seconds + time.perf_counter() - began, steps + 1
        token = pick(found, float(request["temperature"]), float(request["top_p"]), generator)
        if token in stop:
            done = "stop"
            break
        yield {"token": token}
        text.append(token)
        if len(text) > session.longest:
            done = "context"
            break
    yield {
        "done": done,
        "prompt_tokens": computed,
        "steps": steps,
        "prompt_seconds": prompt_seconds,
        "decode_seconds": seconds,
        **peak(),
    }


def pick(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """A token: the most probable one at temperature 0, else drawn from the smallest set whose probability is `top_p`.

    Nucleus sampling: Holtzman et al., "The Curious Case of Neural Text Degeneration", ICLR 2020.

    Args:
        logits: [V].
        temperature: at least 0.
        top_p: in (0, 1].
        generator: source of randomness.
    """
    if temperature == 0:
        return int(logits.argmax())
    chances, order = (logits.double() / temperature).softmax(-1).sort(descending=True)
    before = chances.cumsum(-1) - chances
    chances = chances.where(before < top_p, 0.0)
    return int(order[torch.multinomial(chances, 1, generator=generator)])


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _private_stdout() -> IO[str]:
    """What was stdout. From now on all that libraries print goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(kept, "w", encoding="utf-8")
