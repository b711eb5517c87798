"""A request file as text: read it, parse it, and find the line of each key."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from planish.request_checks import Problem, RequestError
from planish_passes.errors import PlanishError

# A request is written by hand; anything larger is another file given by mistake.
_LARGEST_FILE = 256 * 1024


def read_text(file: Path) -> str:
    """Its text.

    Raises:
        PlanishError: it cannot be read, or cannot be a request.
    """
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


def parse(text: str, file: Path) -> dict[str, Any]:
    """Its values.

    Raises:
        RequestError: with the line, when it is no TOML.
    """
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


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """The line (from 1) on which each key and table of a valid TOML text begins.

    A TOML statement ends with its line as soon as it parses alone, so the text is cut into statements by the parser
    itself; the values that run over several lines end on a line with a closing bracket or quote. Tables of an array
    ([[model]]) have their number, from "0", in the key.
    """
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    arrays: dict[tuple[str, ...], int] = {}
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
        paths = list(leaves(parsed))
        if line.lstrip().startswith("[") and begin == number and paths:
            table = _element(paths[0], arrays, line.lstrip().startswith("[["))
            paths = [()]
        for path in paths:
            for end in range(len(table) + len(path) + 1):
                found.setdefault((*table, *path)[:end], begin)
    return found


def leaves(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterable[tuple[str, ...]]:
    """Keys of all values, as paths; an array of one table counts as that table."""
    for key, value in table.items():
        inner = value[0] if isinstance(value, list) and len(value) == 1 else value
        if isinstance(inner, Mapping) and inner:
            yield from leaves(inner, (*path, key))
        else:
            yield (*path, key)


def _element(header: tuple[str, ...], arrays: dict[tuple[str, ...], int], begins: bool) -> tuple[str, ...]:
    """The key of a table: behind each array in the header, the number of the array's last table."""
    key: tuple[str, ...] = ()
    for end, part in enumerate(header, start=1):
        key = (*key, part)
        if begins and end == len(header):
            arrays[key] = arrays.get(key, -1) + 1
        if key in arrays:
            key = (*key, str(arrays[key]))
    return key
