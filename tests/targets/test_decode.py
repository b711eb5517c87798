"""The inside of a decoding process: caches, ends, sampling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from planish_passes.errors import PlanishError
from planish_targets.decode import Session, State, answer, pick

STATE = State("present.0.key", "past_key_values.0.key", "float32", (1, 1, 0, 1))


class Counting:
    """A model whose cache is the text itself, and whose next token is the sum of the text modulo 50."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, feed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        past, new = feed[STATE.input], feed["input_ids"]
        self.calls.append((past.shape[2], new.shape[1]))
        assert feed["position_ids"].tolist() == [list(range(past.shape[2], past.shape[2] + new.shape[1]))]
        text = torch.cat([past, new[:, None, :, None].float()], 2)
        logits = torch.zeros(1, 1, 50)
        logits[0, 0, int(text.sum()) % 50] = 9.0
        return {"logits": logits, STATE.output: text}


def session(longest: int = 100, whole: bool = False) -> tuple[Session, Counting]:
    model = Counting()
    return Session(model, [STATE], longest, whole), model


def ask(found: Session, tokens: list[int], **how: Any) -> tuple[list[int], dict[str, Any]]:
    request = {"max_tokens": 3, "stop": [], "temperature": 0, "top_p": 1, "seed": 0, **how}
    lines = list(answer(found, {"tokens": tokens, **request}))
    return [line["token"] for line in lines[:-1]], lines[-1]


def test_what_is_known_is_not_computed_again() -> None:
    found, model = session()
    written, end = ask(found, [1, 2, 3])
    assert written == [6, 12, 24]
    assert model.calls == [(0, 3), (3, 1), (4, 1)]
    assert (end["done"], end["prompt_tokens"], end["steps"]) == ("length", 3, 2)
    written, end = ask(found, [1, 2, 3, 6, 40], max_tokens=1)  # leaves the text after four tokens
    assert written == [52 % 50]
    assert model.calls[3:] == [(4, 1)]
    assert ask(found, [1, 2, 3, 6, 40], max_tokens=1)[0] == [2]  # the same again: its last token at least
    assert ask(found, [9], max_tokens=1)[0] == [9]


def test_artifacts_that_take_a_prompt_only_whole() -> None:
    found, model = session(whole=True)
    ask(found, [1, 2, 3], max_tokens=1)
    ask(found, [1, 2, 3, 4], max_tokens=1)
    assert ask(found, [1, 2, 3, 4, 5, 6], max_tokens=1)[0] == [21]
    assert model.calls == [(0, 3), (3, 1), (0, 6)]


def test_ends() -> None:
    assert ask(session()[0], [1, 2, 3], stop=[12])[0] == [6]
    assert ask(session()[0], [1, 2, 3], stop=[12])[1]["done"] == "stop"
    written, end = ask(session(longest=4)[0], [1, 2, 3], max_tokens=9)
    assert (written, end["done"]) == ([6, 12], "context")
    for bad in ([], [1] * 5):
        with pytest.raises(PlanishError, match="the model takes 1 to 4"):
            ask(session(longest=4)[0], bad)


def test_nan_is_no_answer() -> None:
    found, model = session()
    found.model = lambda feed: {**model(feed), "logits": torch.full((1, 1, 50), torch.nan)}
    with pytest.raises(PlanishError, match="NaN"):
        ask(found, [1, 2])


def test_equal_seeds_equal_answers() -> None:
    def written(seed: int) -> list[int]:
        return ask(session()[0], [1, 2], temperature=50, seed=seed, max_tokens=8)[0]

    assert written(1) == written(1)
    assert written(1) != written(2)


def test_drawing() -> None:
    logits, generator = torch.tensor([0.5, 0.3, 0.15, 0.05]).log(), torch.Generator().manual_seed(0)
    assert pick(logits, 0.0, 1.0, generator) == 0

    def shares(temperature: float, top_p: float) -> list[float]:
        drawn = [pick(logits, temperature, top_p, generator) for _ in range(2000)]
        return [drawn.count(token) / 2000 for token in range(4)]

    assert shares(1.0, 1.0) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.04)
    assert shares(1.0, 0.6) == pytest.approx([0.625, 0.375, 0, 0], abs=0.04)
    assert shares(1.0, 1e-6) == [1, 0, 0, 0]
    assert shares(0.5, 1.0)[0] > 0.6
