"""Text of any length through functions that take a fixed number of tokens and keep their caches inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from planish_passes.errors import PlanishError
from planish_targets.serve import Model

TOKENS, SLOTS, LOGITS = "input_ids", "position_ids", "logits"
_FEW = 2  # so many tokens are faster one by one than as a padded chunk and one more step

OneCall = Callable[[str, Mapping[str, Tensor]], Mapping[str, Tensor]]


def chunks_of(options: Mapping[str, object]) -> dict[str, int]:
    """Function of the package -> tokens of one call, from an artifact's options; empty without caches."""
    given = options.get("functions", {})
    assert isinstance(given, Mapping)
    return {str(name): int(size) for name, size in given.items()}


def context_of(options: Mapping[str, object]) -> tuple[int, bool]:
    """Tokens that the caches hold; True when calls return logits for each token."""
    context = options["context"]
    assert isinstance(context, int)
    return context, options.get("logits") == "all"


def resident(one: OneCall, functions: Mapping[str, int], context: int, every: bool) -> Model:
    """A model that takes any number of tokens.

    Args:
        one: (function, its inputs) -> its outputs; caches stay inside.
        functions: function -> tokens of one call; one takes a single token.
        context: tokens that the caches hold.
        every: a call returns logits for each of its tokens, not for the last one alone.

    Returns:
        input_ids and position_ids [1, N] -> logits [1, N or 1, V]. Other inputs go into each call as they are.
    """
    sizes = sorted((size, name) for name, size in functions.items())

    def model(feed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        tokens, slots = feed[TOKENS], feed[SLOTS]
        others = {name: tensor for name, tensor in feed.items() if name not in (TOKENS, SLOTS)}
        _check(slots, context)
        rows: list[Tensor] = []
        result: Mapping[str, Tensor] = {}
        at, count = 0, tokens.shape[1]
        while at < count:
            size, name = _next(sizes, count - at, context - int(slots[0, at]))
            stop = min(at + size, count)
            result = one(name, {**others, **_padded(tokens[:, at:stop], slots[:, at:stop], size)})
            if every:
                rows.append(result[LOGITS][:, : stop - at])
            elif stop - at < size:
                stop -= 1  # these logits are the padding's: the last token is taken once more, by itself
            at = stop
        return {**result, LOGITS: torch.cat(rows, 1) if every else result[LOGITS]}

    return model


def _next(sizes: list[tuple[int, str]], left: int, room: int) -> tuple[int, str]:
    """The function for the next tokens: the largest that they fill; of the padded ones, none beyond the caches' end."""
    full = [s for s in sizes if s[0] <= left][-1]
    larger = [s for s in sizes if full[0] < s[0] <= room]
    return larger[0] if full == sizes[0] and larger and left > _FEW else full


def _padded(tokens: Tensor, slots: Tensor, size: int) -> dict[str, Tensor]:
    """What stands behind the text goes into later slots, which nothing sees until they are written again."""
    missing = size - tokens.shape[1]
    after = slots[:, -1:] + torch.arange(1, missing + 1)
    return {
        TOKENS: torch.cat([tokens, tokens[:, -1:].expand(1, missing)], 1),
        SLOTS: torch.cat([slots, after], 1),
    }


def _check(slots: Tensor, context: int) -> None:
    first, count = int(slots[0, 0]), slots.shape[1]
    if not torch.equal(slots, torch.arange(first, first + count)[None]):
        raise PlanishError("the tokens' places are not one behind the other", SLOTS, "give slots n, n + 1, n + 2, ...")
    if first < 0 or first + count > context:
        what = f"places {first} to {first + count - 1} are outside the caches, which hold {context} tokens"
        raise PlanishError(what, SLOTS, "give a shorter text, or compile with a larger --context")
