"""Which weights and programs each version of iOS and macOS opens, and what must be refused for the older ones."""

from __future__ import annotations

from planish_passes.errors import PlanishError
from planish_passes.palette import palettes
from planish_passes.program import Program
from planish_passes.quantise import INT8, formats

MACOS = {16: 13, 17: 14, 18: 15}  # iOS -> the macOS of the same year, which opens the same packages
DEFAULT, OLDEST = 18, 16
# Sources: apple.github.io/coremltools/docs-guides/source/opt-whats-new.html; coremltools' operations of each opset
BLOCKWISE = 18


def demand(program: Program, ios: int, enumerated: bool = False) -> None:
    """Refuse what a version cannot open.

    Args:
        enumerated: inputs take several lengths that are named.

    Raises:
        PlanishError: names what it lacks and what it has.
    """
    if ios >= BLOCKWISE:
        return
    if program.states:
        raise _refusal("key/value caches inside a package (states)", f"program {program.name!r}", ios)
    for name, format in formats(program).items():
        if format.bits != INT8.bits:
            raise _refusal(f"{format.bits}-bit integers", name, ios)
        if format.group:
            raise _refusal(f"scales for groups of {format.group} weights", name, ios)
    if enumerated and sum("sequence" in p.shape for p in program.inputs) > 1:
        raise _refusal("several inputs with lengths that are named", "--sequence-length", ios)
    for name in palettes(program):
        raise _refusal("tables for groups of channels", name, ios)


def spoken(ios: int) -> str:
    """A version for people."""
    return f"iOS {ios} / macOS {MACOS[ios]}"


def _refusal(what: str, where: str, ios: int) -> PlanishError:
    return PlanishError(
        f"{spoken(ios)} has no {what}; {spoken(BLOCKWISE)} has",
        where,
        f"leave --minimum-ios {ios} out, or ask for less: an encoder, recipe float or int8 (one scale per channel), "
        "one length or --dynamic",
    )
