"""Passes and their checked runner: the runner, not the pass, validates and counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from torch import fx

from planish_passes.errors import PlanishError
from planish_passes.program import Program, module_path, op_name


@dataclass(frozen=True)
class Refusal:
    """Something that a pass looked at and left as it was, with the reason."""

    node: str
    reason: str
    module: str = ""

    @classmethod
    def of(cls, node: fx.Node, reason: str) -> Refusal:
        """A refusal that names a node and its source module."""
        return cls(
            f"{node.name} ({op_name(node)})" if node.op == "call_function" else node.name, reason, module_path(node)
        )


@dataclass(frozen=True)
class PassResult:
    """The program after a pass, how many places changed, and what was refused."""

    program: Program
    changed: int
    refused: tuple[Refusal, ...] = ()


class Pass(Protocol):
    """A frozen dataclass whose fields are its options."""

    def run(self, program: Program) -> PassResult:
        """Return the changed program. The argument is a private copy that may be edited."""
        ...


@dataclass(frozen=True)
class Step:
    """What one pass did."""

    name: str
    changed: int
    refused: tuple[Refusal, ...]
    nodes_before: int
    nodes_after: int


@dataclass(frozen=True)
class Outcome:
    """The program after all passes, and the record of each."""

    program: Program
    steps: tuple[Step, ...] = field(default_factory=tuple)

    @property
    def refused(self) -> tuple[Refusal, ...]:
        """Every refusal of every pass, in order."""
        return tuple(r for s in self.steps for r in s.refused)


Watcher = Callable[[str, Program, Program], None]


def run_passes(program: Program, passes: Iterable[Pass], watch: Watcher | None = None) -> Outcome:
    """Run passes in order on a private copy; each result is validated before the next pass starts.

    Args:
        program: the start; left as it is.
        passes: the order, from `pipeline`.
        watch: called with (pass name, before, after) behind each pass, to dump or compare both sides.

    Raises:
        PlanishError: a pass broke the program; names the pass and those that ran before it.
    """
    steps: list[Step] = []
    start = program
    for entry in passes:
        name = type(entry).__name__
        # What a pass returns belongs to this loop, so that only the start and what is watched needs a copy.
        private = program.copy() if program is start or watch is not None else program
        before = len(program.graph.nodes)
        result = entry.run(private)
        _validate(result.program, name, [s.name for s in steps])
        if watch is not None:
            watch(name, program, result.program)
        after = len(result.program.graph.nodes)
        steps.append(Step(name, result.changed, result.refused, before, after))
        program = result.program
    if program is not start:
        program.exported.graph_module.recompile()
    return Outcome(program, tuple(steps))


def _validate(program: Program, name: str, ran: list[str]) -> None:
    problem = _problem(program)
    if problem:
        raise PlanishError(
            f"pass {name} broke the program: {problem}",
            f"program {program.name!r}, after {', '.join(ran) or 'no other pass'}",
            "this is a defect of the pass; report it with the model's config.json",
        )


def _problem(program: Program) -> str | None:
    program.graph.lint()
    names = program.weight_names()
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names and names[node.name] not in program.weights:
            return f"weight {names[node.name]!r} is used but not in the store"
        if node.op == "call_function" and "val" not in node.meta:
            return f"node {node.name} has no value type"
    specs = program.exported.graph_signature.input_specs
    placeholders = [n.name for n in program.graph.nodes if n.op == "placeholder"]
    if [getattr(s.arg, "name", None) for s in specs] != placeholders:
        return "the graph signature does not list the placeholders in order"
    returned = program.graph.output_node().args[0]
    arity = len(returned) if isinstance(returned, (tuple, list)) else 1
    if arity != len(program.outputs):
        return f"{arity} outputs returned, {len(program.outputs)} declared"
    return None
