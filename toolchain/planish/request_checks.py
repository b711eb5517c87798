"""What is wrong with the values of a request: unknown keys, names and values, each with the way out."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from planish.request import Gates, Request
from planish_passes.errors import PlanishError


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a request: what, where (file:line or flag), and the way out."""

    what: str
    where: str
    hint: str


class RequestError(PlanishError):
    """All that is wrong with a request, at once.

    Args:
        problems: at least one.
        source: what was read: the request file, or the command.
    """

    def __init__(self, problems: Iterable[Problem], source: str) -> None:
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            super().__init__(self.problems[0].what, self.problems[0].where, self.problems[0].hint)
            return
        listed = "".join(f"\n  {p.where}: {p.what}; {p.hint}" for p in self.problems)
        hint = "mend all of these; `planish compile --help` lists every flag, which are also the keys"
        super().__init__(f"{len(self.problems)} things are wrong with the request:{listed}", source, hint)


def command_fault(command: str) -> str:
    """What is wrong with a command line that a shell would split; empty when nothing is."""
    try:
        return "" if shlex.split(command) else "is empty"
    except ValueError as error:
        return f"cannot be split into words: {str(error).lower()}"


Found = tuple[tuple[str, ...], str, str]  # key, what, hint


@dataclass(frozen=True)
class Names:
    """What a request may name.

    Args:
        targets: targets and variants.
        default: the targets of a request that names none.
        recipes: recipes.
    """

    targets: tuple[str, ...]
    default: tuple[str, ...]
    recipes: tuple[str, ...]


def installed_names() -> Names:
    """Of this planish. Imports torch."""
    from planish.recipes import RECIPES
    from planish_targets import registry

    default = tuple(name for name, target in registry.targets().items() if target.capabilities.default)
    return Names(tuple(registry.known()), default, tuple(RECIPES))


def unknown_keys(table: Mapping[str, Any]) -> list[Found]:
    """Keys that a request does not have, of the table itself and of its gates."""
    gates = table.get("gates")
    tables: list[tuple[tuple[str, ...], Any, type[BaseModel]]] = [((), table, Request)]
    if isinstance(gates, Mapping):
        tables.append((("gates",), gates, Gates))
    return [
        ((*path, key), f"unknown key {'.'.join((*path, key))!r}", nearest(key, list(model.model_fields), "key"))
        for path, keys, model in tables
        for key in keys
        if key not in model.model_fields
    ]


def known_keys(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table without the keys that `unknown_keys` tells of."""
    kept = {key: value for key, value in table.items() if key in Request.model_fields}
    if isinstance(kept.get("gates"), Mapping):
        kept["gates"] = {k: v for k, v in kept["gates"].items() if k in Gates.model_fields}
    return kept


def validated(data: Mapping[str, Any]) -> tuple[Request | None, list[Found]]:
    """The request (None when values are wrong), and what is wrong."""
    paths = [(key, data[key]) for key in ("model", "output") if isinstance(data.get(key), str)]
    found: list[Found] = [
        ((key,), f"{key} holds a NUL character, which no path can", "write the path of a file or folder")
        for key, value in paths
        if "\0" in value
    ]
    try:
        return Request.model_validate(dict(data)), found
    except ValidationError as error:
        return None, found + [_wrong(detail) for detail in error.errors(include_url=False)]


def _wrong(detail: Mapping[str, Any]) -> Found:
    key = tuple(str(part) for part in detail["loc"])
    if key == ("model",) and detail["type"] == "missing":
        return key, "no model is given", 'planish compile MODEL, or model = "..." in the request file'
    if detail["type"] == "too_short":
        return key, f"{key[0]} is an empty list", "leave the key out for all targets, or name some"
    if detail["type"] == "string_too_short":
        return key, f"{key[0]} is empty", f"{key[0]}: {Request.model_fields[key[0]].description}"
    message = detail["msg"].removeprefix("Input ").replace("should be a valid tuple", "should be a list").split(",")[0]
    model, name = (Gates, key[1]) if key[0] == "gates" and len(key) > 1 else (Request, key[0])
    meaning = model.model_fields[name].description or "a table of limits, such as cosine = 0.99"
    return key, f"{'.'.join(key)} {message}, not {_short(detail['input'])}", f"it is the {meaning}"


def unknown_names(data: Mapping[str, Any], names: Names) -> list[Found]:
    """Targets and recipes that do not exist, and commands that no shell could split."""
    found: list[Found] = []
    known = list(names.targets)

    def told(name: str) -> str:
        if ":" not in name:
            return nearest(name, known, "target")
        from planish_targets import registry

        return registry.hint(name)

    asked = data.get("targets")
    if isinstance(asked, (list, tuple)):
        for name in (n for n in asked if isinstance(n, str) and n not in known):
            found.append((("targets",), f"unknown target {name!r}", told(name)))
    recipe, runner = data.get("recipe"), data.get("runner")
    if isinstance(recipe, str) and recipe not in names.recipes:
        found.append((("recipe",), f"unknown recipe {recipe!r}", nearest(recipe, list(names.recipes), "recipe")))
    if isinstance(runner, Mapping):
        for name, command in runner.items():
            fault = command_fault(command) if isinstance(command, str) else ""
            if fault:
                found.append(
                    (("runner", name), f"the command of {name} {fault}", 'write it as in a shell: ssh HOST "..."')
                )
        for name in (n for n in runner if n not in known):
            found.append((("runner", name), f"runner for the unknown target {name!r}", told(name)))
    return found


def nearest(name: str, known: list[str], kind: str) -> str:
    """What to write instead: the nearest of the known ones, or all of them."""
    near = difflib.get_close_matches(name.replace("-", "_") if kind == "key" else name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known {kind}s: {', '.join(known)}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
