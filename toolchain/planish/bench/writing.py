"""Language models: prompts in, tokens out, in the process that `planish run` uses."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise

from planish.bench import cold
from planish.bench.process import Conditions, Key, Plan, Told, load_and_memory
from planish.bundle import Bundle
from planish.language import ready
from planish_passes.errors import PlanishError
from planish_targets import registry
from planish_targets.contract import Artifact, Runner, Unavailable
from planish_targets.stream import Decoding, Finished, Sampling


@dataclass(frozen=True)
class Writing:
    """A language model that reads prompts and writes, in a decoding process.

    Args:
        vocabulary: number of tokens; prompts are random, so that no two begin alike and nothing comes from the cache.
    """

    bundle: Bundle
    target: str
    artifact: Artifact
    runner: Runner
    timeout: float
    vocabulary: int

    def process(self, threads: int, plan: Plan) -> Told:
        """See Subject."""
        samples: dict[Key, list[float]] = {}
        prompt, new, longest = self._lengths(plan)
        with self._open(threads, longest) as decoding:
            for number in range(1 + plan.warmups + plan.calls):
                times, end = self._answer(decoding, number, prompt, new)
                if number == 0:
                    samples["first_token_cold", ""] = [times[1] - times[0]]
                elif number > plan.warmups:
                    samples.setdefault(("first_token", ""), []).append(times[1] - times[0])
                    samples.setdefault(("prefill", ""), []).append(end.prompt_seconds)
                    samples.setdefault(("decode", ""), []).append(end.decode_seconds)
                    steps = [b - a for a, b in pairwise(times[1:])]
                    samples.setdefault(("token", ""), []).extend(steps)
            told = load_and_memory(decoding.load_seconds, end.peak_bytes, decoding.start_bytes)
            runtime = decoding.device
        counts = {("prefill", ""): prompt, ("decode", ""): new - 1}
        where: Conditions = {"prompt_tokens": prompt, "new_tokens": new, "context": longest}
        conditions = dict.fromkeys(samples, where)
        return Told({**samples, **told}, counts, conditions, runtime, self._versions(), self.runner.evidence)

    def first_load(self, threads: int) -> tuple[float | None, float | None]:
        """See Subject."""
        left = cold.drop(self.artifact.folder)
        if not cold.is_cold(left):
            return None, left
        with self._open(threads, self._lengths(Plan())[2]) as decoding:
            return decoding.load_seconds, left

    def sustained(self, threads: int, seconds: float, plan: Plan) -> tuple[str, str, list[tuple[float, float]]]:
        """See Subject."""
        prompt, new, longest = self._lengths(plan)
        course: list[tuple[float, float]] = []
        with self._open(threads, longest) as decoding:
            began, number = time.perf_counter(), 0
            while time.perf_counter() - began < seconds:
                times, _ = self._answer(decoding, number, prompt, new)
                course += [(a - began, b - a) for a, b in pairwise(times[1:])]
                number += 1
        return "token", "", course

    def _open(self, threads: int, longest: int) -> Decoding:
        found = ready(self.bundle, self.target, self.runner)
        assert not isinstance(found, Unavailable)
        return Decoding(self.runner, self.artifact, found.states, longest, threads=threads, timeout=self.timeout)

    def _lengths(self, plan: Plan) -> tuple[int, int, int]:
        """Tokens of prompt and answer, and the context."""
        found = ready(self.bundle, self.target, self.runner)
        assert not isinstance(found, Unavailable)
        new = max(2, min(plan.new, found.longest // 2))
        return max(1, min(plan.prompt, found.longest - new)), new, found.longest

    def _answer(self, decoding: Decoding, number: int, prompt: int, new: int) -> tuple[list[float], Finished]:
        """When it was asked, when each token came, and what the process says. Nothing of the prompt is in the cache."""
        draw = random.Random(number)
        first = number % self.vocabulary  # never that of the prompt before
        tokens = [first, *(draw.randrange(self.vocabulary) for _ in range(prompt - 1))]
        times = [time.perf_counter()]
        for event in decoding.answer(tokens, Sampling(max_tokens=new)):
            if isinstance(event, Finished):
                if event.prompt_tokens != prompt or event.steps != new - 1:
                    told = f"{event.prompt_tokens} tokens were read and {event.steps} steps made"
                    what = f"{told}, not {prompt} and {new - 1}."
                    raise PlanishError(what, self.target, "this is a defect of planish: please report it")
                return times, event
            times.append(time.perf_counter())
        raise AssertionError("an answer ends with Finished")

    def _versions(self) -> dict[str, str]:
        return {
            name: found for name in registry.find(self.target.partition("/")[0]).requires if (found := _version(name))
        }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
