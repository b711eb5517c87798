"""Payloads of delegates beside XNNPACK, in the file that holds them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

from planish_passes.errors import PlanishError
from planish_targets.attributes import Step
from planish_targets.contract import Unavailable
from planish_targets.executorch.delegates import reader
from planish_targets.executorch.delegates.delegate import Payload, Steps
from planish_targets.executorch.pte import XNNPACK, PteFile


def payloads(file: PteFile) -> dict[int, Payload | Unavailable]:
    """Delegate index -> what its payload holds; a payload that is not whole is one without operations and a problem."""
    found: dict[int, Payload | Unavailable] = {}
    for index, delegate in enumerate(file.plan.delegates):
        if delegate.id == XNNPACK:
            continue
        known = reader(delegate.id)
        if known is None:
            found[index] = Unavailable(f"payloads of {delegate.id} cannot be read here")
            continue
        try:
            found[index] = known.payload(file, index)
        except PlanishError as broken:
            found[index] = Payload((), {}, (f"delegate {index}: {broken.what}",))
    return found


def delegate_steps(file: PteFile, inner: Mapping[str, str]) -> dict[int, Steps] | Unavailable:
    """Delegate index -> its payload for finding epsilons; Unavailable when one of them cannot be read.

    Raises:
        PlanishError: a payload is not whole.
    """
    found: dict[int, Steps] = {}
    for index, delegate in enumerate(file.plan.delegates):
        if delegate.id == XNNPACK:
            continue
        known = reader(delegate.id)
        if known is None:
            return Unavailable(f"payloads of {delegate.id} cannot be read here")
        told = known.steps(file, index, of_delegate(inner, index))
        if isinstance(told, Unavailable):
            return told
        found[index] = told
    return found


def of_delegate(inner: Mapping[str, str], index: int) -> dict[str, str]:
    """Operation of one delegate -> source module."""
    return {key.partition(":")[2]: module for key, module in inner.items() if key.partition(":")[0] == str(index)}


def placed(steps: Steps, instruction: int, args: Sequence[int]) -> Steps:
    """The steps of a delegate as part of the plan: what goes in and out has the plan's index as its key, and what stays
    inside a key of its own."""
    outside: dict[Hashable, int] = dict(zip(steps.ports, args, strict=False))

    def key(inner: Hashable) -> Hashable:
        return outside.get(inner, (instruction, inner))

    moved: tuple[Step, ...] = tuple(
        replace(s, inputs=tuple(map(key, s.inputs)), output=key(s.output)) for s in steps.steps
    )
    return Steps(moved, {key(k): n for k, n in steps.numbers.items()}, args if isinstance(args, tuple) else tuple(args))
