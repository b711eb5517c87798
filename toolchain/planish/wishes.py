"""What a request asks of the form of artifacts, handed to the targets that can choose one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from planish.recipes import RecipeSpec, find_recipe
from planish.request import Request
from planish_passes.errors import PlanishError
from planish_passes.palette import PaletteFormat
from planish_targets import registry
from planish_targets.contract import Adapts, ReadsPalettes, Target, Wishes

BLOCKWISE, PALETTES = "int4", "lut4"
# The groups of which a source says that they stay on the Neural Engine (see coreml/rules.py)
ANE_GROUP = 32


def friendly(request: Request) -> Request:
    """The request with palettes in place of int4 groups, when the Neural Engine is asked for and all targets can."""
    if not request.ane or request.recipe != BLOCKWISE or _without_palettes(request.targets):
        return request
    return request.model_copy(update={"recipe": PALETTES})


def recipe_of(request: Request) -> RecipeSpec:
    """The recipe, with the groups of palettes that the Neural Engine is said to take when it is asked for.

    Raises:
        PlanishError: no such recipe.
    """
    found = find_recipe(request.recipe)
    if not request.ane or found.palette is None:
        return found
    return replace(found, palette=PaletteFormat(found.palette.bits, ANE_GROUP))


def told(request: Request) -> tuple[str, ...]:
    """What to know of a recipe that was chosen, or could not be, for the Neural Engine."""
    if request.ane and request.recipe == PALETTES:
        return (
            f"--ane: palettes for groups of {ANE_GROUP} channels (recipe {PALETTES}), not int4 for groups of inputs",
        )
    if request.ane and request.recipe == BLOCKWISE:
        others = ", ".join(_without_palettes(request.targets))
        return (f"--ane: int4 stays int4, because {others} shares the weights and has no palettes",)
    return ()


def _without_palettes(names: Sequence[str]) -> list[str]:
    return [name for name in names if not isinstance(registry.find(name), ReadsPalettes)]


def adapted(targets: tuple[Target, ...], request: Request) -> tuple[Target, ...]:
    """The targets, those that can in the form that is asked for.

    Raises:
        PlanishError: none of the targets has the forms, or the wishes contradict each other.
    """
    several = request.lengths if len(request.lengths) > 1 else ()
    wishes = Wishes(request.minimum_ios, request.ane, several)
    flag = "--minimum-ios" if request.minimum_ios else "--ane" if request.ane else ""
    if flag and not any(isinstance(t, Adapts) for t in targets):
        raise PlanishError(
            f"{flag} speaks of Core ML packages, and none is asked for", flag, "add -t coreml, or leave it out"
        )
    return tuple(t.adapted(wishes) if isinstance(t, Adapts) else t for t in targets)
