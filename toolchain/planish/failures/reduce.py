"""The smallest config whose random model fails in the same way, within a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from planish.failures import shrink
from planish.failures.record import Record
from planish.failures.sign import REFUSED, Sign, wanted

Attempt = Callable[[Mapping[str, Any], str, Mapping[str, Any], float], tuple[Sign, ...]]
Say = Callable[[str], None]

# Of the machine or the user, or without a meaning for a model that is made up.
_DROPPED = ("model", "output", "runner", "revision", "trust_remote_code", "config", "task", "keep_failed", "loaders")


@dataclass(frozen=True)
class Reduced:
    """A config that shows the failure with random weights.

    Args:
        config: of the model.
        request: what to ask for, without a model.
        tries: models that were made and compiled.
        complete: nothing smaller was left to try.
        refused: tries whose config the model's class refused.
    """

    config: dict[str, Any]
    request: dict[str, Any]
    tries: int
    complete: bool
    refused: int = 0


@dataclass
class _Search:
    attempt: Attempt
    task: str
    sign: Sign
    end: float
    say: Say
    tries: int = 0
    refused: int = 0
    reason: str = ""  # why the last config was refused

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.end

    def shows(self, config: Mapping[str, Any], request: Mapping[str, Any], what: str) -> bool:
        if self.over:
            return False
        self.tries += 1
        signs = self.attempt(config, self.task, request, self.end - time.monotonic())
        found = self.sign in signs
        told = "the same failure" if found else "not this failure"
        if signs and signs[0][0] == REFUSED:
            self.refused, self.reason = self.refused + 1, signs[0][1]
            told = f"the model's class refuses it ({self.reason})"
        self.say(f"{what}: {told}")
        return found


def reduce(record: Record, attempt: Attempt, seconds: float, say: Say) -> Reduced | str:
    """Fewer layers, narrower ones, then one size after the other, as long as the failure stays the same.

    Returns:
        The smallest found, or the reason why there is none.
    """
    sign, model = wanted(record), record.model
    if sign is None or model is None:
        return "the failure does not come from the model's graph, or its config is not known"
    if record.request.get("trust_remote_code"):
        return "the model brings its own code, which is not run here"
    search = _Search(attempt, model.task, sign, time.monotonic() + seconds, say)
    request = _request(record, sign)
    best = _first(search, model.config, request)
    if best is None:
        if search.over:
            return f"no smaller model showed it within {seconds:g} s; --time gives more"
        return _not_found(search)
    simple = {k: v for k, v in request.items() if k in ("targets", "dynamic")} | {"verify": False}
    if sign[0] == "stopped" and simple != request and search.shows(best, simple, "recipe float, no checks"):
        request = simple
    best, complete = _halve(search, best, request)
    return Reduced(best, request, search.tries, complete, search.refused)


def _not_found(search: _Search) -> str:
    if search.refused == search.tries:
        return f"no random model of this config can be made, large or small: {search.reason}"
    told = "no random model of this class shows it: it depends on the model's own weights or size"
    if not search.refused:
        return told
    return f"{told} ({search.refused} of {search.tries} configs were refused by the class: {search.reason})"


def _request(record: Record, sign: Sign) -> dict[str, Any]:
    kept = {k: v for k, v in record.request.items() if k not in _DROPPED}
    failed = [f.target for f in record.findings] + [g.target.partition("/")[0] for g in record.gates]
    target = sign[1] if sign[0] == "gate" else next((t for t in failed if t), "")
    known = target in kept.get("targets", ())
    return {**kept, "targets": [target] if known else list(kept.get("targets", ()))[:1], "loaders": False}


def _first(search: _Search, config: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any] | None:
    """The smallest of a few bold steps that shows the failure; the config itself when none does."""
    one = shrink.shallow(config)
    seen: list[Mapping[str, Any]] = []
    for start, layers in ((one, "one layer"), (config, "all layers")):
        for factor in (*shrink.FACTORS, 1):
            made = shrink.narrow(start, factor) if factor > 1 else dict(start)
            if made in seen:
                continue
            seen.append(made)
            if search.shows(made, request, f"{layers}, widths / {factor}"):
                return made
    return None


def _halve(search: _Search, best: dict[str, Any], request: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    moved = True
    while moved and not search.over:
        moved = False  # a size that was refused may fit once others are smaller
        for at in [place for place, _ in sorted(shrink.sizes(best), key=lambda found: -found[1])]:
            while size := dict(shrink.sizes(best)).get(at):
                made = shrink.halved(best, at)
                if not search.shows(made, request, f"{'.'.join(map(str, at))} {size} -> {size // 2}"):
                    break
                best, moved = made, True
    return best, not search.over
