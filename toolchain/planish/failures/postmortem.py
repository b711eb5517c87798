"""What an exception says of the pass, node and module that it stopped at, read from the frames that it went through.

Frames, because whatever raises (a pass, a target, a vendor's SDK below it, torch) need not know that it is asked:
a new pass or target is explained without a line of its own. They are looked at for nodes, programs and names alone; no
value of a tensor is read.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from torch import fx

from planish.failures.record import Finding
from planish_passes.errors import PlanishError
from planish_passes.nodes import module_path, op_name
from planish_passes.program import Program
from planish_passes.text import around

_THEIRS = frozenset({"torch"})  # its frames hold nodes of graphs that nobody sees
_NEIGHBOURS = 6  # lines of the graph on each side
_LINES = 120  # of a traceback
_LINE = re.compile(r'File "([^"]+)", line (\d+), in (\S+)(?:\n\s+(\S.*))?')


def examine(problem: BaseException, target: str = "") -> Finding:
    """The finding of an exception that was raised.

    Args:
        target: what was lowered for, where the caller knows it.
    """
    frames = [f for f in _frames(problem) if str(f.f_globals.get("__name__", "")).partition(".")[0] not in _THEIRS]
    told = problem if isinstance(problem, PlanishError) else None
    what = told.what if told else _first_line(problem)
    where, hint = (told.where, told.hint) if told else ("", "")
    name, ran = _pass(frames)
    program = next((v for f in frames for v in f.f_locals.values() if isinstance(v, Program)), None)
    node = _node(frames, program, _texts(problem))
    found: dict[str, Any] = {}
    if node is not None:
        names = program.weight_names() if program is not None else {}
        found = {
            "node": node.name,
            "op": op_name(node) if node.op == "call_function" else node.op,
            "module": module_path(node),
            "source": _source(node),
            "graph": around(node, names, _NEIGHBOURS),
        }
    lines = "".join(traceback.format_exception(problem)).splitlines()
    kept = lines if len(lines) <= _LINES else [*lines[:10], "  ...", *lines[10 - _LINES :]]
    return Finding(
        target=target or _target(frames),
        kind=type(_root(problem) if told else problem).__name__,
        what=what,
        where=where,
        hint=hint,
        pass_name=name,
        ran=ran,
        traceback="\n".join(kept),
        **found,
    )


def _frames(problem: BaseException) -> Iterator[FrameType]:
    """Innermost first, those of the exceptions that led to it before its own."""
    before = problem.__cause__ or problem.__context__
    if before is not None and before is not problem:
        yield from _frames(before)
    walked = [frame for frame, _ in traceback.walk_tb(problem.__traceback__)]
    yield from reversed(walked)


def _root(problem: BaseException) -> BaseException:
    while problem.__cause__ is not None:
        problem = problem.__cause__
    return problem


def _texts(problem: BaseException | None) -> str:
    parts: list[str] = []
    while problem is not None:
        parts.append(str(problem))
        problem = problem.__cause__
    return "\n".join(parts)


def _first_line(problem: BaseException) -> str:
    text = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {text[0]}" if text else type(problem).__name__


def _pass(frames: Sequence[FrameType]) -> tuple[str, tuple[str, ...]]:
    for frame in frames:
        if frame.f_code.co_name == "run_passes" and "name" in frame.f_locals:
            return str(frame.f_locals["name"]), tuple(s.name for s in frame.f_locals.get("steps", ()))
    return "", ()


def _target(frames: Sequence[FrameType]) -> str:
    for frame in frames:
        target = frame.f_locals.get("target")
        if hasattr(target, "capabilities") and isinstance(getattr(target, "name", None), str):
            return str(target.name)  # type: ignore[union-attr]
    return ""


def _node(frames: Sequence[FrameType], program: Program | None, text: str) -> fx.Node | None:
    """The node that the text names; else the one that the innermost frame works on."""
    held = [v for f in frames for v in _of(f) if v.op == "call_function"]
    nodes = [n for n in program.graph.nodes if n.op == "call_function"] if program is not None else []
    by_text = [n for n in (*held, *nodes) if _by_name(text, n)] or [n for n in (*held, *nodes) if _by_place(text, n)]
    by_operator = [n for n in nodes if _has(text, op_name(n))]
    return next(iter([*by_text, *held, *by_operator]), None)


def _of(frame: FrameType) -> Iterator[fx.Node]:
    values = dict(frame.f_locals)
    named = values.pop("node", None)
    yield from (v for v in (named, *values.values()) if isinstance(v, fx.Node))


def _by_name(text: str, node: fx.Node) -> bool:
    # "add" is also a word.
    return _has(text, node.name) if "_" in node.name else _has(text, f"node {node.name}") or f"%{node.name} " in text


def _by_place(text: str, node: fx.Node) -> bool:
    path = module_path(node)
    return bool(path) and _has(text, op_name(node)) and _has(text, path)


def _has(text: str, name: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(name)}(?![\w])", text) is not None


def _source(node: fx.Node) -> str:
    """The innermost line of the model's own code, for a node or for what goes into it."""
    for seen in (node, *node.all_input_nodes):
        for path, number, function, code in reversed(_LINE.findall(seen.meta.get("stack_trace") or "")):
            if not re.search(r"/(torch|planish\w*)/", path):
                file = re.split(r"[/\\]", path)[-1]
                return f"{file}, line {number}, in {function}" + (f": {code.strip()}" if code else "")
    return ""
