"""How every command ends: exit codes, and errors in three lines."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import typer
from typer.core import TyperGroup

from planish.cli.console import emit_json, err
from planish.exhausted import exhausted

FAILED, USAGE, GATE = 1, 2, 3
_LESS = "close other programs, name fewer targets, leave checks out with --no-verify, or take a machine with more"

_WRITING = {
    errno.ENOSPC: ("There is no space left on the disk", "free some space, or write to another disk with -o"),
    errno.EDQUOT: ("The disk quota is used up", "free some space, or write to another disk with -o"),
    errno.EACCES: ("Permission denied", "choose a place that you may write to, or change its rights"),
    errno.EPERM: ("The operation is not permitted", "choose a place that you may write to, or change its rights"),
    errno.EROFS: ("The file system is read-only", "write to another place with -o"),
    errno.ENAMETOOLONG: ("The file name is too long", "choose a shorter one"),
    errno.ENOTDIR: ("A part of the path is not a folder", "check the path"),
    errno.EFBIG: ("The file is too large for this file system", "write to another disk with -o"),
}


@dataclass(frozen=True)
class Told:
    """An error as the user sees it."""

    what: str
    where: str
    hint: str


class UsageError(typer.TyperException):
    """The command line is wrong in a way that no single option shows."""

    exit_code = USAGE

    def __init__(self, what: str, where: str, hint: str) -> None:
        super().__init__(what)
        self.told = Told(what, where, hint)


class Guarded(TyperGroup):
    """The root command: turns errors that users can act on into three lines and an exit code.

    Everything else is a defect of planish and keeps its traceback. What was noted on an error (`add_note`) is told
    behind its three lines.
    """

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, and exit with the code that the help text lists."""
        as_json = "--json" in (sys.argv[1:] if args is None else args)
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except typer.TyperException as error:
            code = _usage(error, as_json)
        except typer.Abort:
            code = 130
        except Exception as error:
            told = explain(error)
            if told is None:
                raise
            code = tell(told, as_json, getattr(error, "problems", ()), getattr(error, "__notes__", ()))
        if not standalone_mode:
            return code
        sys.exit(code)


def explain(error: Exception) -> Told | None:
    """What to tell of an exception; None when it is not for users."""
    errors = sys.modules.get("planish_passes.errors")
    lacking = exhausted(error)
    if lacking == "memory":
        return Told("Memory ran out.", _stage(error), _LESS)
    if errors is not None and isinstance(error, errors.PlanishError):
        return Told(error.what, error.where, error.hint)
    if isinstance(error, OSError) and error.errno in _WRITING:
        what, hint = _WRITING[error.errno]
        return Told(f"{what}.", str(error.filename or "while writing"), hint)
    if lacking == "disk":
        what, hint = _WRITING[errno.ENOSPC]
        return Told(f"{what}.", _stage(error), hint)
    return None


def _stage(error: Exception) -> str:
    """Where something ran out: the compile's stage, if it was noted."""
    return next((n for n in getattr(error, "__notes__", ()) if n.startswith("stage ")), "while writing")


def tell(told: Told, as_json: bool = False, problems: Sequence[Any] = (), notes: Sequence[str] = ()) -> int:
    """Print an error: three lines on stderr, and with `as_json` also as JSON on stdout. Returns the exit code."""
    console = err()
    for label, text, style in (
        ("error", told.what, "bold red"),
        ("where", told.where, "bold"),
        ("hint", told.hint, "bold green"),
    ):
        console.print(f"{label}:", style=style, end=" ")
        console.print(text, soft_wrap=True)
    notes = [note for note in notes if not note.startswith("stage ")]
    for note in notes:
        console.print(f"more: {note}", style="dim", soft_wrap=True)
    if as_json:
        listed = {"problems": [asdict(p) for p in problems]} if problems else {}
        emit_json({"error": {**asdict(told), **listed, **({"more": notes} if notes else {})}})
    return FAILED


def _usage(error: typer.TyperException, as_json: bool) -> int:
    # Raised when `planish` is called bare; its message is the help text.
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(error.format_message())
        return USAGE
    if isinstance(error, UsageError):
        told = error.told
    else:
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "planish"
        told = Told(error.format_message(), where, f"{where} --help")
    tell(told, as_json)
    return USAGE
