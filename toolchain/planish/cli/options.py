"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from planish.trust.check import Trusted

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

BundleOrPacked = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A folder NAME.planish, or what planish pack made.", show_default=False)
]
TrustedKeys = Annotated[
    list[Path] | None, typer.Option("--key", metavar="PUB.pem", help="Public key of a signer; repeatable.")
]
TrustedRoots = Annotated[
    list[Path] | None,
    typer.Option("--certificate", metavar="ROOT.pem", help="Root that vouches for signers; repeatable."),
]
TrustedIdentity = Annotated[
    str | None, typer.Option("--identity", metavar="NAME", help="Signer known to Sigstore; needs --issuer, network.")
]
TrustedIssuer = Annotated[str | None, typer.Option("--issuer", metavar="URL", help="Who vouches for the identity.")]


def trusted(
    keys: Iterable[Path] | None, roots: Iterable[Path] | None, identity: str | None, issuer: str | None
) -> Trusted | None:
    """Whose signatures count; None when nobody is named.

    Raises:
        UsageError: an identity without its issuer.
        PlanishError: a key cannot be read.
    """
    from planish.cli.guard import UsageError
    from planish.trust.check import Identity, Trusted
    from planish.trust.keys import public_key

    if (identity is None) != (issuer is None):
        hint = "--identity NAME --issuer URL"
        raise UsageError("An identity and its issuer belong together.", "--identity", hint)
    people = (Identity(identity, issuer),) if identity is not None and issuer is not None else ()
    return Trusted(tuple(public_key(key) for key in keys or ()), tuple(roots or ()), (), people) or None


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
    from planish.request_checks import command_fault
    from planish_passes.errors import PlanishError

    known_targets(commands)
    for name, command in commands.items():
        fault = command_fault(command)
        if fault:
            raise PlanishError(f"The command of {name} {fault}.", "--runner", "write it as in a shell")


def whole(given: str | None, option: str) -> int | tuple[int, ...] | None:
    """A number, or several with commas between them.

    Raises:
        typer.BadParameter: one is not a whole number.
    """
    if given is None:
        return None
    try:
        found = tuple(int(part) for part in given.split(","))
    except ValueError:
        raise typer.BadParameter(f"{given!r} is not N or N,N,...", param_hint=option) from None
    return found if len(found) > 1 else found[0]
