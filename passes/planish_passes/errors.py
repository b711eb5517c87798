"""The one error that users see."""

from __future__ import annotations


class PlanishError(Exception):
    """A failure that the user can act on.

    Args:
        what: what went wrong, one sentence.
        where: the file, key, tensor, node or command it went wrong at.
        hint: what to do about it.
    """

    def __init__(self, what: str, where: str, hint: str) -> None:
        super().__init__(what, where, hint)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}\n  where: {self.where}\n  hint:  {self.hint}"
