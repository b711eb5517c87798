"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show warnings of torch, transformers and the SDKs.")]
Targets = Annotated[
    list[str] | None,
    typer.Option("--target", "-t", metavar="TARGET", help="Target; repeat it, or separate with commas."),
]
RunnerPairs = Annotated[
    list[str] | None,
    typer.Option("--runner", metavar="TARGET=COMMAND", help="Command that runs the artifact of a target; repeatable."),
]
Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder NAME.planish.", show_default=False)]


def names(given: Iterable[str] | None) -> tuple[str, ...]:
    """Values of an option that may be repeated and comma separated, in order, once each."""
    parts = (part.strip() for value in given or () for part in value.split(","))
    return tuple(dict.fromkeys(part for part in parts if part))


def pairs(given: Iterable[str] | None, option: str) -> dict[str, str]:
    """Values of a NAME=VALUE option.

    Raises:
        typer.BadParameter: one is not of this form, or a name comes twice.
    """
    found: dict[str, str] = {}
    for text in given or ():
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint=option)
        if name in found:
            raise typer.BadParameter(f"{name!r} is given twice", param_hint=option)
        found[name] = value
    return found


def numbers(given: Iterable[str] | None, option: str) -> dict[str, float]:
    """Values of a NAME=NUMBER option.

    Raises:
        typer.BadParameter: see `pairs`, or a value is not a number.
    """
    found: dict[str, float] = {}
    for name, value in pairs(given, option).items():
        try:
            found[name] = float(value)
        except ValueError:
            raise typer.BadParameter(f"{value!r} is not a number", param_hint=option) from None
    return found


def known_targets(given: Iterable[str]) -> tuple[str, ...]:
    """The same names.

    Raises:
        PlanishError: one is no target; suggests the nearest.
    """
    from planish_targets import registry

    return tuple(registry.find(name).name for name in given)


def check_commands(commands: Mapping[str, str]) -> None:
    """Nothing, when every name is a target and every command can be split into words.

    Raises:
        PlanishError: naming the target.
    """
    from planish.request_file import command_fault
    from planish_passes.errors import PlanishError

    known_targets(commands)
    for name, command in commands.items():
        fault = command_fault(command)
        if fault:
            raise PlanishError(f"The command of {name} {fault}.", "--runner", "write it as in a shell")
