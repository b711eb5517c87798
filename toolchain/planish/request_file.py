"""Read a request from planish.toml and flags; everything that is wrong with it is told at once."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from planish.request import Gates, Request
from planish_passes.errors import PlanishError

# A request is written by hand; anything larger is another file given by mistake.
_LARGEST_FILE = 256 * 1024


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
    text = _read(file) if file is not None else ""
    table = _parse(text, file) if file is not None else {}
    problems = [*_unknown_keys(table), *_unknown_keys(flags)]
    data = _merge(_resolve_paths(_known(table), file), _known(flags))
    data.setdefault("targets", default_targets())
    request, wrong = _validate(data)
    problems += [*wrong, *_unknown_names(data)]
    if request is not None and not problems:
        return request.model_copy(update={"targets": tuple(dict.fromkeys(request.targets))})
    origin = _Origin(file, key_lines(text), frozenset(_leaves(flags)))
    problems.sort(key=lambda found: origin.line(found[0]))
    raise RequestError(
        [Problem(what, origin.of(key), hint) for key, what, hint in problems], str(file or "planish compile")
    )


def default_targets() -> tuple[str, ...]:
    """The targets of a request that names none: those that say so; no variants."""
    from planish_targets.registry import targets

    return tuple(name for name, target in targets().items() if target.capabilities.default)


def command_fault(command: str) -> str:
    """What is wrong with a command line that a shell would split; empty when nothing is."""
    try:
        return "" if shlex.split(command) else "is empty"
    except ValueError as error:
        return f"cannot be split into words: {str(error).lower()}"


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """The line (from 1) on which each key and table of a valid TOML text begins.

    A TOML statement ends with its line as soon as it parses alone, so the text is cut into statements by the parser
    itself; the values that run over several lines end on a line with a closing bracket or quote.
    """
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    begin, statement = 1, ""
    for number, line in enumerate(text.split("\n"), start=1):
        longer = statement + line + "\n"
        if not statement:
            begin = number
        elif not re.search(r"""[\]}]|\"{3}|'{3}""", line):
            statement = longer
            continue
        try:
            parsed = tomllib.loads(longer)
        except ValueError:
            statement = longer
            continue
        statement = ""
        paths = list(_leaves(parsed))
        if line.lstrip().startswith("[") and begin == number and paths:
            table = paths[0]
            paths, parsed = [()], {}
        for path in paths:
            for end in range(len(table) + len(path) + 1):
                found.setdefault((*table, *path)[:end], begin)
    return found


def _read(file: Path) -> str:
    again = "give the path of a planish.toml after -c"
    try:
        if file.stat().st_size > _LARGEST_FILE:
            raise PlanishError("The request file is too large to be one.", str(file), again)
        return file.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise PlanishError("The request file is not UTF-8 text.", str(file), "save it as UTF-8") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PlanishError(f"The request file cannot be read: {reason}.", str(file), again) from error


def _parse(text: str, file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        message = str(error)
        at = re.search(r" \(at line (\d+), column \d+\)", message)
        line = int(at.group(1)) if at else text.count("\n") + 1
        message = message.replace(at.group(0), "") if at else message
        problem = Problem(
            f"The request file is not valid TOML: {message}",
            f"{file}:{line}",
            'write key = value, with text in quotes: recipe = "int8"',
        )
        raise RequestError([problem], str(file)) from error


_Found = tuple[tuple[str, ...], str, str]  # key, what, hint


def _unknown_keys(table: Mapping[str, Any]) -> list[_Found]:
    gates = table.get("gates")
    tables: list[tuple[tuple[str, ...], Any, type[BaseModel]]] = [((), table, Request)]
    if isinstance(gates, Mapping):
        tables.append((("gates",), gates, Gates))
    return [
        ((*path, key), f"unknown key {'.'.join((*path, key))!r}", _nearest(key, list(model.model_fields), "key"))
        for path, keys, model in tables
        for key in keys
        if key not in model.model_fields
    ]


def _known(table: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in table.items() if key in Request.model_fields}
    if isinstance(kept.get("gates"), Mapping):
        kept["gates"] = {k: v for k, v in kept["gates"].items() if k in Gates.model_fields}
    return kept


def _resolve_paths(table: dict[str, Any], file: Path | None) -> dict[str, Any]:
    if file is None:
        return table
    model, output = table.get("model"), table.get("output")
    if isinstance(output, str) and output:
        table["output"] = str(file.parent / output)
    # A hub id looks like a relative path; a folder that is there, or one that is spelled as a path, is a path.
    if isinstance(model, str) and model and (model.startswith(".") or os.path.exists(file.parent / model)):
        table["model"] = str(file.parent / model)
    return table


def _merge(table: dict[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**table, **flags}
    for key in ("gates", "runner"):
        below, above = table.get(key), flags.get(key)
        if isinstance(below, dict) and isinstance(above, Mapping):
            merged[key] = {**below, **above}
    return merged


def _validate(data: Mapping[str, Any]) -> tuple[Request | None, list[_Found]]:
    paths = [(key, data[key]) for key in ("model", "output") if isinstance(data.get(key), str)]
    found: list[_Found] = [
        ((key,), f"{key} holds a NUL character, which no path can", "write the path of a file or folder")
        for key, value in paths
        if "\0" in value
    ]
    try:
        return Request.model_validate(dict(data)), found
    except ValidationError as error:
        return None, found + [_wrong(detail) for detail in error.errors(include_url=False)]


def _wrong(detail: Mapping[str, Any]) -> _Found:
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


def _unknown_names(data: Mapping[str, Any]) -> list[_Found]:
    from planish.recipes import RECIPES
    from planish_targets import registry

    found: list[_Found] = []
    known = list(registry.known())

    def told(name: str) -> str:
        return registry.hint(name) if ":" in name else _nearest(name, known, "target")

    asked = data.get("targets")
    if isinstance(asked, (list, tuple)):
        for name in (n for n in asked if isinstance(n, str) and n not in known):
            found.append((("targets",), f"unknown target {name!r}", told(name)))
    recipe, runner = data.get("recipe"), data.get("runner")
    if isinstance(recipe, str) and recipe not in RECIPES:
        found.append((("recipe",), f"unknown recipe {recipe!r}", _nearest(recipe, list(RECIPES), "recipe")))
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


def _nearest(name: str, known: list[str], kind: str) -> str:
    near = difflib.get_close_matches(name.replace("-", "_") if kind == "key" else name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known {kind}s: {', '.join(known)}"


def _leaves(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterable[tuple[str, ...]]:
    for key, value in table.items():
        inner = value[0] if isinstance(value, list) and len(value) == 1 else value
        if isinstance(inner, Mapping) and inner:
            yield from _leaves(inner, (*path, key))
        else:
            yield (*path, key)


def _flag(key: tuple[str, ...]) -> str:
    if key[0] == "model":
        return "MODEL"
    spelled = {"targets": "target", "gates": "gate"}.get(key[0], key[0]).replace("_", "-")
    return f"--{spelled}" + (f" {key[1]}" if len(key) > 1 and key[0] in ("gates", "runner") else "")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
