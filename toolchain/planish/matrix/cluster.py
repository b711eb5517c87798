"""Compiles on a Ray cluster: tasks run where there is room, and their bundles come back over Ray.

Every node needs the same planish with the same packages (checked) and the models at the same paths, or as hub ids.
"""

from __future__ import annotations

import contextlib
import os
import platform
import queue
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from planish.bundle.files import walk
from planish.bundle.swap import check_replaceable, replacing
from planish.matrix.cache import local_folder
from planish.matrix.compile import Compiled, Processes, compile_request
from planish.matrix.facts import Facts, read_facts
from planish.matrix.file import Job
from planish.matrix.key import differences, machine
from planish.request import Request
from planish_passes.errors import PlanishError

_PIECE = 8 << 20  # bytes of a file that travel at once
_LOOK = 0.5  # seconds
_AHEAD = 8  # pieces that a node makes before the first one is taken
_ERRORS = 40  # as in logging: warnings of Ray about its own are not for users of a build
Item = tuple[str, Any]  # ("say", line), ("file", (path, piece)) or ("end", how)


class Cluster:
    """See planish.matrix.run.Executor.

    Args:
        facts: of this machine; a node with others refuses.
        address: of the cluster; None = the one that RAY_ADDRESS names, or a Ray of this machine alone.

    Raises:
        PlanishError: ray is not installed, or there is no such cluster.
    """

    def __init__(self, facts: Facts, address: str | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise PlanishError("Ray is not installed.", "--executor ray", "pip install 'planish[ray]'") from error
        self._ray, self._facts = ray, facts
        told = address or os.environ.get("RAY_ADDRESS")
        try:
            ray.init(address=told, log_to_driver=False, logging_level=_ERRORS, **_alone(told))
        except Exception as error:  # Ray raises the class itself when a node does not start in time
            what = f"Ray does not start or answer: {str(error).strip().splitlines()[0]}"
            hint = "ray status tells what is there; on a busy machine, start it before: ray start --head"
            raise PlanishError(what, told or "a Ray of this machine", hint) from error
        options = {"max_retries": 0, "num_returns": "streaming", "_generator_backpressure_num_objects": _AHEAD}
        self._task = ray.remote(**options)(compile_here)
        self._running: list[Any] = []
        self._lock = threading.Lock()

    @property
    def room(self) -> int:
        """Processors of the cluster: so many compiles at the same time."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def compile(self, job: Job, say: Callable[[str], None]) -> Compiled:
        """See Executor."""
        asked = job.request.model_dump_json(exclude={"output"})
        with self._lock:
            stream = self._task.remote(asked, job.name, expected(self._facts, job.request))
            self._running.append(stream)
        try:
            return self._receive(job, (self._ray.get(item) for item in stream), say)
        except self._ray.exceptions.RayError as error:
            what = f"The compile on the cluster ended: {str(error).strip().splitlines()[0]}"
            return Compiled(None, PlanishError(what, job.name, "run planish build again"), 0.0)
        finally:
            with self._lock:
                self._running.remove(stream)

    def stop(self) -> None:
        """See Executor."""
        with self._lock:
            for stream in self._running:
                self._ray.cancel(stream)

    def _receive(self, job: Job, items: Iterator[Item], say: Callable[[str], None]) -> Compiled:
        for kind, value in items:
            if kind == "say":
                say(value)
            elif kind == "end":
                return _compiled(value)
            else:
                return self._install(job, value, items)
        raise PlanishError("The compile on the cluster ended without a word.", job.name, "run planish build again")

    def _install(self, job: Job, first: tuple[str, bytes], items: Iterator[Item]) -> Compiled:
        at = job.output.absolute()
        at.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(at):
            check_replaceable(at)
        with replacing(at, check_replaceable) as folder:
            _append(folder, *first)
            for kind, value in items:
                if kind == "end":
                    return _compiled(value)
                _append(folder, *value)
            # Raised inside, so that what has come so far never takes the bundle's place.
            raise PlanishError("The bundle came back in part only.", job.name, "run planish build again")


def _alone(address: str | None) -> dict[str, Any]:
    """Options for a Ray that is started for this build."""
    return {} if address is not None else {"include_dashboard": False, "ignore_reinit_error": True}


def expected(facts: Facts, request: Request) -> dict[str, Any]:
    """What a node must be like to make the same bundle."""
    packages = {name: v for target in ("", *request.targets) for name, v in facts.packages[target].items()}
    return {"planish": {"sources": facts.sources}, "packages": packages, "machine": machine()}


def compile_here(asked: str, name: str, wanted: Mapping[str, Any]) -> Iterator[Item]:
    """Compile on this node: lines of progress, pieces of the bundle's files, then how it ended.

    Args:
        asked: the request as JSON, without `output`.
        name: of the bundle.
        wanted: see `expected`.
    """
    request = Request.model_validate_json(asked)
    other = differences(wanted, expected(read_facts(local_folder() / "facts"), request))
    if other:
        what = f"A node of the cluster differs: {'; '.join(other[:5])}"
        refusal = PlanishError(what, platform.node(), "install the same on all nodes")
        yield "end", _ended(Compiled(None, refusal, 0.0))
        return
    processes = Processes()
    with tempfile.TemporaryDirectory(prefix="planish-") as folder, contextlib.ExitStack() as stack:
        stack.callback(processes.stop)  # also when the build that asked is gone
        at = Path(folder, f"{name}.planish")
        lines: queue.Queue[str | None] = queue.Queue()
        done: list[Compiled | BaseException] = []

        def work() -> None:
            placed = request.model_copy(update={"output": at})
            try:
                done.append(compile_request(placed, name, Path(folder, "work"), processes, lines.put))
            except BaseException as error:
                done.append(error)
            lines.put(None)

        threading.Thread(target=work, daemon=True).start()
        yield from (("say", line) for line in _until_none(lines))
        if isinstance(done[0], BaseException):
            raise done[0]
        if at.is_dir():
            yield from (("file", piece) for piece in _pieces(at))
        yield "end", _ended(done[0])


def _until_none(lines: queue.Queue[str | None]) -> Iterator[str]:
    while True:
        try:
            line = lines.get(timeout=_LOOK)
        except queue.Empty:  # a cancelled task learns of it between two looks
            continue
        if line is None:
            return
        yield line


def _pieces(bundle: Path) -> Iterator[tuple[str, bytes]]:
    for inside, path in walk(bundle):
        with path.open("rb") as file:
            yield inside, file.read(_PIECE)
            while piece := file.read(_PIECE):
                yield inside, piece


def _append(folder: Path, inside: str, piece: bytes) -> None:
    path = folder / inside
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(piece)


def _ended(made: Compiled) -> dict[str, Any]:
    error = made.error and {"what": made.error.what, "where": made.error.where, "hint": made.error.hint}
    return {"summary": made.summary, "error": error, "seconds": made.seconds}


def _compiled(told: Mapping[str, Any]) -> Compiled:
    error = told["error"] and PlanishError(**told["error"])
    return Compiled(told["summary"], error, told["seconds"])
