"""Read a request from planish.toml and flags; everything that is wrong with it is told at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish.request import Request
from planish.request_checks import (
    Problem,
    RequestError,
    installed_names,
    known_keys,
    unknown_keys,
    unknown_names,
    validated,
)
from planish.request_toml import key_lines, leaves, parse, read_text
from planish_passes.errors import PlanishError


@dataclass(frozen=True)
class _Origin:
    """Where each key was given, for messages."""

    file: Path | None
    lines: Mapping[tuple[str, ...], int]
    flags: frozenset[tuple[str, ...]]

    def line(self, key: tuple[str, ...]) -> int:
        """The line of a key, or of its table when the key itself is not there; 0 for flags and for what is nowhere."""
        for end in range(len(key), 0, -1):
            if key[:end] in self.flags:
                return 0
            if key[:end] in self.lines:
                return self.lines[key[:end]]
        return 0

    def of(self, key: tuple[str, ...]) -> str:
        """`file:line`, or the flag."""
        if any(key[:end] in self.flags for end in range(1, len(key) + 1)):
            return _flag(key)
        line = self.line(key)
        return f"{self.file}:{line}" if line else str(self.file or "planish compile")


def load_request(file: Path | None, flags: Mapping[str, Any]) -> Request:
    """The request of a file, of flags, or of both; flags win.

    Args:
        file: planish.toml; relative paths in it start at its folder.
        flags: fields of Request that were given on the command line; `gates` and `runner` are merged key by key.

    Raises:
        RequestError: unknown keys, wrong values, unknown targets and recipes: all of them at once.
    """
    text = read_text(file) if file is not None else ""
    table = parse(text, file) if file is not None else {}
    if file is not None and has_several(table):
        hint = f"planish build {file}, with --only NAME for one of them"
        raise PlanishError("The file describes several bundles, and compile makes one.", str(file), hint)
    table.pop("cache", None)  # of `planish build`
    problems = [*unknown_keys(table), *unknown_keys(flags)]
    data = merged(resolve_paths(known_keys(table), file), known_keys(flags))
    names = installed_names()
    data.setdefault("targets", names.default)
    request, wrong = validated(data)
    problems += [*wrong, *unknown_names(data, names)]
    if request is not None and not problems:
        return request.model_copy(update={"targets": tuple(dict.fromkeys(request.targets))})
    origin = _Origin(file, key_lines(text), frozenset(leaves(flags)))
    problems.sort(key=lambda found: origin.line(found[0]))
    raise RequestError(
        [Problem(what, origin.of(key), hint) for key, what, hint in problems], str(file or "planish compile")
    )


def has_several(table: Mapping[str, Any]) -> bool:
    """True for the form that only `planish build` takes: several models, recipes or bundles per target."""
    several = {"recipes", "separate_targets"} & {*table}
    return isinstance(table.get("model"), list) or isinstance(table.get("recipe"), dict) or bool(several)


def resolve_paths(table: dict[str, Any], file: Path | None) -> dict[str, Any]:
    """The table with paths that start at the file; it is changed in place."""
    if file is None:
        return table
    model, output = table.get("model"), table.get("output")
    if isinstance(output, str) and output:
        table["output"] = str(file.parent / output)
    # A hub id looks like a relative path; a folder that is there, or one that is spelled as a path, is a path.
    if isinstance(model, str) and model and (model.startswith(".") or os.path.exists(file.parent / model)):
        table["model"] = str(file.parent / model)
    return table


def merged(table: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Both; the second wins, in `gates` and `runner` key by key."""
    both = {**table, **flags}
    for key in ("gates", "runner"):
        below, above = table.get(key), flags.get(key)
        if isinstance(below, dict) and isinstance(above, Mapping):
            both[key] = {**below, **above}
    return both


def _flag(key: tuple[str, ...]) -> str:
    if key[0] == "model":
        return "MODEL"
    spelled = {"targets": "target", "gates": "gate"}.get(key[0], key[0]).replace("_", "-")
    return f"--{spelled}" + (f" {key[1]}" if len(key) > 1 and key[0] in ("gates", "runner") else "")
