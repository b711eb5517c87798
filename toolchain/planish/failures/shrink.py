"""Smaller configs of the same class of model: fewer layers, narrower ones, fewer words. No family is known by name.

Fields are told apart by what they count, as transformers spells it in all of its configs: "layer(s)", "head(s)", "_id".
What does not fit together fails when the model is made, and is just another candidate that shows nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Config = Mapping[str, Any]
Path = tuple[str | int, ...]

FACTORS = (128, 64, 32, 16, 8, 4, 2)
_LAYERS = re.compile(r"(^|_)(layers?|depths?|blocks)$")
_IDS = re.compile(r"(^|_)(ids?|token|index)$")
_HEADS = re.compile(r"heads?(_kv)?$")
_NARROW, _WIDE = 16, 1024  # what is smaller is no width; what is larger need not stay a multiple


def sizes(config: Config) -> Iterator[tuple[Path, int]]:
    """Every whole number above 1 that is a size, with its place; ids of tokens are none."""
    yield from _walk(config, ())


def _walk(value: Any, at: Path) -> Iterator[tuple[Path, int]]:
    if isinstance(value, bool) or (at and isinstance(at[-1], str) and _IDS.search(at[-1])):
        return
    if isinstance(value, int) and value > 1:
        yield at, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _walk(inner, (*at, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _walk(inner, (*at, number))


def shallow(config: Config) -> dict[str, Any]:
    """One layer in the place of all."""
    lengths = {v for at, v in sizes(config) if _name(at, _LAYERS) and isinstance(at[-1], str)}
    made = changed(config, lambda at, v: 1 if _name(at, _LAYERS) else v)
    return _cut(made, lengths)


def narrow(config: Config, factor: int) -> dict[str, Any]:
    """Every width divided; numbers of heads stay, so that heads get narrower, in their proportion."""

    def divided(at: Path, value: int) -> int:
        if value < _NARROW or _name(at, _HEADS) or (value % factor and value < _WIDE):
            return value
        return max(value // factor, 2)

    return changed(config, divided)


def halved(config: Config, at: Path) -> dict[str, Any]:
    """The config with half of one size."""
    return changed(config, lambda place, size: size // 2 if place == at else size)


def changed(config: Config, change: Callable[[Path, int], int]) -> dict[str, Any]:
    """The config with every size changed; ids that no word has any more become ones that a word has."""
    made: dict[str, Any] = _changed(config, (), change)
    words = min((v for at, v in _walk(made, ()) if at[-1] == "vocab_size"), default=None)
    return made if words is None else _fitting(made, words)


def _changed(value: Any, at: Path, change: Callable[[Path, int], int]) -> Any:
    if isinstance(value, bool) or (at and isinstance(at[-1], str) and _IDS.search(at[-1])):
        return value
    if isinstance(value, int):
        return change(at, value) if value > 1 else value
    if isinstance(value, Mapping):
        return {k: _changed(v, (*at, k), change) for k, v in value.items()}
    return [_changed(v, (*at, n), change) for n, v in enumerate(value)] if isinstance(value, list) else value


def _fitting(value: Any, words: int, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {k: _fitting(v, words, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_fitting(v, words, key) for v in value]
    is_id = isinstance(value, int) and not isinstance(value, bool) and _IDS.search(key)
    return value % words if is_id and value >= words else value


def _cut(value: Any, lengths: set[int]) -> Any:
    """Lists that have an entry for every layer, down to one entry."""
    if isinstance(value, Mapping):
        return {k: _cut(v, lengths) for k, v in value.items()}
    if isinstance(value, list) and len(value) in lengths and not any(isinstance(v, (list, dict)) for v in value):
        return value[:1]
    return value


def _name(at: Path, pattern: re.Pattern[str]) -> bool:
    named = next((part for part in reversed(at) if isinstance(part, str)), "")
    return pattern.search(named) is not None
