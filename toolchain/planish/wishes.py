"""What a request asks of the form of artifacts, handed to the targets that can choose one."""

from __future__ import annotations

from planish.request import Request
from planish_passes.errors import PlanishError
from planish_targets.contract import Adapts, Target, Wishes


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
