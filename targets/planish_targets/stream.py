"""The outside of a decoding process: start it, ask it, see it crash. Its inside is `planish_targets.decode`."""

from __future__ import annotations

import json
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

from planish_passes.errors import PlanishError
from planish_targets.contract import Artifact, Runner
from planish_targets.decode import PROTOCOL, State
from planish_targets.runner import environment, reason_of, stop
from planish_targets.serve import DECODE


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Args:
        max_tokens: most tokens of one answer.
        stop: tokens that end it.
        temperature: 0 = the most probable token.
        top_p: probability of the tokens that are drawn from.
        seed: of the draw.
    """

    max_tokens: int = 128
    stop: tuple[int, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Finished:
    """The end of an answer.

    Args:
        reason: "stop" (a token of `Sampling.stop`), "length" (`max_tokens`), "context" (no room left).
        prompt_tokens: tokens of the prompt that were computed; the others came from the cache.
        steps: calls with one token.
        prompt_seconds, decode_seconds: wall time inside the artifact: the prompt; all steps.
        peak_bytes: largest resident size of the process so far; None where the system does not tell.
    """

    reason: str
    prompt_tokens: int
    steps: int
    prompt_seconds: float
    decode_seconds: float
    peak_bytes: int | None


class Decoding:
    """A child process with an open artifact, for `with`.

    Args:
        runner: a command of which `planish_targets.serve` is the inside; `--decode` is appended.
        artifact: what to run.
        states: its caches.
        longest: tokens that they may hold.
        threads: threads inside the runtime.
        timeout: seconds to open the artifact, and seconds of one answer.

    Attributes:
        device, load_seconds: what computes, and how long it took to open the artifact.
        start_bytes: largest resident size before it was opened; None where the system does not tell.

    Raises:
        PlanishError: from every method: the process crashed, ran out of time or cannot decode; or what it told.
    """

    def __init__(
        self,
        runner: Runner,
        artifact: Artifact,
        states: Sequence[State],
        longest: int,
        *,
        threads: int = 1,
        timeout: float = 600.0,
    ) -> None:
        self._runner, self._artifact, self._threads, self._timeout = runner, artifact, threads, timeout
        self._where = f"{artifact.target}, {artifact.entry}"
        self._first = {
            "protocol": PROTOCOL,
            "path": str(artifact.path.resolve()),
            "options": dict(artifact.options),
            "threads": threads,
            "longest": longest,
            "states": [asdict(s) for s in states],
        }
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.device, self.load_seconds = "", 0.0
        self.start_bytes: int | None = None

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                [*self._runner.command, DECODE],
                env=environment(self._threads),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,
            )
        except OSError as problem:
            self._log.close()
            what = f"The runner cannot be started: {problem}."
            raise PlanishError(what, self._where, "check the installation with `planish doctor`") from problem
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self._hello()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stop(self._process)
        for pipe in (self._process.stdin, self._log):
            try:
                if pipe is not None:
                    pipe.close()
            except BrokenPipeError:  # what was not yet written is of no use any more
                continue

    def answer(self, tokens: Sequence[int], how: Sampling) -> Iterator[int | Finished]:
        """Tokens as they come, then `Finished`.

        Args:
            tokens: the whole text so far; what it has in common with the last one is not computed again.
            how: how to continue it.
        """
        until = self._send({"tokens": list(tokens), **asdict(how)})
        while "token" in (told := self._receive(until)):
            yield int(told["token"])
        yield Finished(
            str(told["done"]),
            int(told["prompt_tokens"]),
            int(told["steps"]),
            float(told["prompt_seconds"]),
            float(told["decode_seconds"]),
            told.get("peak_rss_bytes"),
        )

    def _hello(self) -> None:
        told = self._receive(self._send(self._first))
        if told.get("protocol") != PROTOCOL:
            raise self._foreign()
        self.device, self.load_seconds = str(told["device"]), float(told["load_seconds"])
        self.start_bytes = told.get("start_rss_bytes")

    def _send(self, line: dict[str, Any]) -> float:
        """Returns until when the answer has time."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(line).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as problem:  # nobody reads any more: what _read sees next tells why
            self._log.write(f"\n{problem}".encode())
        return time.monotonic() + self._timeout

    def _receive(self, until: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            what = f"No answer within {self._timeout:g} s; the process was stopped."
            raise PlanishError(what, self._where, "give it more time with --timeout, or ask for fewer tokens") from None
        if line is None:
            raise self._died()
        try:
            told = dict(json.loads(line))
        except (ValueError, TypeError):
            raise self._foreign() from None
        if "error" in told:
            raise PlanishError(**told["error"])
        return told

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            for line in pipe:
                self._lines.put(line)
        self._lines.put(None)

    def _died(self) -> PlanishError:
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            return self._foreign()
        size = self._log.seek(0, 2)
        self._log.seek(max(0, size - 4000))
        reason = reason_of(code, self._log.read().decode(errors="replace"))
        hint = "check the bundle with `planish verify`; try another target with -t"
        return PlanishError(f"{reason[0].upper()}{reason[1:]}.", self._where, hint)

    def _foreign(self) -> PlanishError:
        command = " ".join(self._runner.command)
        return PlanishError("This runner does not write text.", command, "choose another target with -t")
