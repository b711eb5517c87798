"""Caches as states: what a program takes and returns becomes what a call reads and changes in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, OutputSpec, TensorArgument

from planish_passes.canonicalise import Canonicalise
from planish_passes.errors import PlanishError
from planish_passes.fold import FoldConstants
from planish_passes.infra import run_passes
from planish_passes.program import Program
from planish_passes.specialise import Specialise

DECODE, PREFILL = "decode", "prefill"
MAIN = "main"


def functions(program: Program, chunks: Sequence[int]) -> dict[str, Program]:
    """The program for each number of tokens that one call may take; one function of its own shapes without caches.

    Args:
        chunks: numbers of tokens.

    Raises:
        PlanishError: another dimension than the number of new tokens is open.
    """
    if program.states and set(program.axes) == {"sequence"}:
        sizes = sorted({min(n, program.axes["sequence"][1]) for n in chunks})
        names = [DECODE if n == 1 else PREFILL if len(sizes) == 2 else f"{PREFILL}_{n}" for n in sizes]
        return {
            name: run_passes(program, (Specialise({"sequence": n}), Canonicalise(), FoldConstants())).program
            for name, n in zip(names, sizes, strict=True)
        }
    if program.axes:
        raise PlanishError(
            f"dimensions {', '.join(program.axes)} are dynamic",
            f"program {program.name!r}",
            "fix them: pass sizes to for_target",
        )
    return {DECODE if program.states else MAIN: program}


def mutated(exported: ExportedProgram, states: Mapping[str, str]) -> None:
    """Turn pairs of an output and an input into inputs that a call changes; they come first among the outputs.

    Args:
        exported: functional, in the operators that the converter takes.
        states: name of an input's placeholder -> name of the node that is its next value.
    """
    if not states:
        return
    output = exported.graph.output_node()
    returned: list[fx.Node] = list(output.args[0])  # type: ignore[arg-type]
    specs = list(exported.graph_signature.output_specs)
    at = {node.name: i for i, node in enumerate(returned)}
    users = [n.name for n in exported.graph.nodes if n.op == "placeholder" and n.name in states]
    order = [at[states[name]] for name in users]
    rest = [i for i in range(len(returned)) if i not in set(order)]
    output.args = (tuple(returned[i] for i in (*order, *rest)),)
    exported.graph_signature.output_specs[:] = [
        *(
            OutputSpec(OutputKind.USER_INPUT_MUTATION, TensorArgument(returned[i].name), name)
            for i, name in zip(order, users, strict=True)
        ),
        *(specs[i] for i in rest),
    ]
