"""The config of a model as far as it shapes its graph: numbers, switches and choices, no names, labels or texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_CHOICE = re.compile(r"[A-Za-z0-9_.+-]{1,64}")
# Of users, of files or of how it is shown; none of it is in a graph.
_PRIVATE = frozenset(
    {"_name_or_path", "name_or_path", "id2label", "label2id", "task_specific_params", "finetuning_task"}
)
_TELLING = re.compile(r"(^|_)(name|path|url|user|author|commit|license|label|prompt|text|tag|problem)s?$")
_DROPPED = object()


def plain_config(config: Any) -> dict[str, Any]:
    """JSON values of a transformers config; labels become their number."""
    full: Mapping[str, Any] = config.to_dict()
    kept = _mapping(full)
    if isinstance(full.get("id2label"), Mapping):
        kept["num_labels"] = len(full["id2label"])
    return kept


def _mapping(values: Mapping[str, Any]) -> dict[str, Any]:
    kept = {str(k): _plain(v, str(k)) for k, v in values.items() if k not in _PRIVATE and _CHOICE.fullmatch(str(k))}
    return {k: v for k, v in kept.items() if v is not _DROPPED}


def _plain(value: Any, key: str = "") -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return _mapping(value)
    if isinstance(value, (list, tuple)):
        return [p for p in (_plain(v, key) for v in value) if p is not _DROPPED]
    text = str(value).removeprefix("torch.")  # dtypes
    return text if _CHOICE.fullmatch(text) and not _TELLING.search(key) else _DROPPED
