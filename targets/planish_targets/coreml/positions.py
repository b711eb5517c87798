"""Tables of rotary positions, cut to the tokens that the caches hold."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from planish_passes.program import Program, add_weight, finish, op_name
from planish_passes.weights import TensorSpec


def cut_to_context(program: Program) -> Program:
    """The program with tables of as many rows as its caches have slots: no later position can be asked for.

    Args:
        program: a language model with caches [1, H, C, D] as states; any other is returned as it is.
    """
    inner = {i for _, i in program.states}
    context = next((p.shape[2] for p in program.inputs if p.name in inner), None)
    if not isinstance(context, int):
        return program
    program = program.copy()
    names, made = program.weight_names(), dict[str, fx.Node]()
    for node in [n for n in program.graph.nodes if n.op == "call_function" and op_name(n) == "planish.rope"]:
        for at in (2, 3):
            table = node.args[at]
            if table.name not in names or program.weights.spec(names[table.name]).shape[0] <= context:
                continue
            name = names[table.name]
            if name not in made:
                program, made[name] = _shorter(program, name, table, context)
            node.update_arg(at, made[name])
    return finish(program) if made else program


def _shorter(program: Program, name: str, table: fx.Node, rows: int) -> tuple[Program, fx.Node]:
    spec, short = program.weights.spec(name), f"{name}_of_{rows}"
    cut = TensorSpec((rows, *spec.shape[1:]), spec.dtype)
    store = program.weights
    shorter = store.with_lazy(
        short, cut, lambda: store.rows(name, 0, rows), (name,), lambda start, stop: store.rows(name, start, stop)
    )
    program = replace(program, weights=shorter)
    with table.meta["val"].fake_mode:
        return program, add_weight(program, short, torch.empty(cut.shape, dtype=cut.dtype))
