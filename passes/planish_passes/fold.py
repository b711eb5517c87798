"""Fold what does not depend on an input into constants."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from planish_passes.infra import PassResult
from planish_passes.program import Program, add_weight, finish, module_path


@dataclass(frozen=True)
class FoldConstants:
    """Evaluate nodes that depend on weights and constants only, where every shape is known.

    Trained weights are left alone unless `weights` is set: folding one would hide it from `quantise`.

    Args:
        largest: folded results of more elements than this stay computed at run time.
        weights: fold through trained weights too (for targets that want no arithmetic on weights at run time).
    """

    largest: int = 1 << 20
    weights: bool = False

    def run(self, program: Program) -> PassResult:
        """See the class."""
        known: dict[fx.Node, Tensor] = {}
        names = program.weight_names()
        folded = 0
        with torch.no_grad():
            for node in list(program.graph.nodes):
                if node.op == "placeholder" and node.name in names and self._may_read(program, names[node.name]):
                    known[node] = program.weights.read(names[node.name])
                elif node.op == "call_function" and self._foldable(node, known):
                    known[node] = node.target(*_values(node.args, known), **_values(node.kwargs, known))  # type: ignore[operator]
        for node in [n for n in known if n.op == "call_function"]:
            if any(user not in known for user in node.users):
                program = _replace(program, node, known[node], folded)
                folded += 1
        return PassResult(finish(program), folded)

    def _may_read(self, program: Program, name: str) -> bool:
        small = torch.Size(program.weights.spec(name).shape).numel() <= self.largest
        return small and (self.weights or not program.weights.sources(name))

    def _foldable(self, node: fx.Node, known: dict[fx.Node, Tensor]) -> bool:
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or not all(isinstance(s, int) for s in value.shape):
            return False
        target = node.target
        pure = isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded not in target.tags
        return pure and value.numel() <= self.largest and all(n in known for n in node.all_input_nodes)


def _values(arguments: Any, known: dict[fx.Node, Tensor]) -> Any:
    return fx.node.map_arg(arguments, lambda n: known[n])  # type: ignore[arg-type]


def _replace(program: Program, node: fx.Node, value: Tensor, number: int) -> Program:
    path = module_path(node)
    name = f"{path}.{node.name}.folded".lstrip(".")
    while name in program.weights:
        number += 1
        name = f"{path}.{node.name}.folded_{number}".lstrip(".")
    value = value.contiguous().clone()
    fake = node.meta["val"]
    program = replace(program, weights=program.weights.with_tensor(name, value))
    weight = add_weight(program, name, fake)
    weight.meta["planish_module"] = path
    node.replace_all_uses_with(weight)
    return program
