"""Fix the dynamic dimensions of a program."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export.graph_signature import ConstantArgument, OutputKind

from planish_passes.errors import PlanishError
from planish_passes.infra import PassResult
from planish_passes.program import Port, Program, finish


@dataclass(frozen=True)
class Specialise:
    """Give each named dimension a number; sizes computed from it become constants in the graph.

    Args:
        sizes: dimension name -> size, e.g. {"batch": 1, "sequence": 128}.
    """

    sizes: Mapping[str, int]

    def run(self, program: Program) -> PassResult:
        """See the class.

        Raises:
            PlanishError: a size lies outside what the program was traced for.
        """
        if not program.axes:
            return PassResult(program, 0)
        for axis, (low, high) in program.axes.items():
            if not low <= self.sizes[axis] <= high:
                raise PlanishError(
                    f"{axis} = {self.sizes[axis]} is outside what the model takes ({low} to {high})",
                    f"program {program.name!r}",
                    "choose another --sequence-length",
                )
        changed = _propagate(program, self._port_shapes(program))
        program = replace(
            finish(program),
            inputs=tuple(self._fixed(p) for p in program.inputs),
            outputs=tuple(self._fixed(p, n) for p, n in zip(program.outputs, _returned(program), strict=True)),
            axes={},
        )
        program.exported._range_constraints = {}
        return PassResult(program, changed)

    def _port_shapes(self, program: Program) -> dict[str, tuple[int, ...]]:
        names = program.weight_names()
        users = [n for n in program.graph.nodes if n.op == "placeholder" and n.name not in names]
        return {n.name: self._fixed(p).shape for n, p in zip(users, program.inputs, strict=True)}  # type: ignore[misc]

    def _fixed(self, port: Port, node: fx.Node | None = None) -> Port:
        if node is not None:
            return replace(port, shape=tuple(int(s) for s in node.meta["val"].shape))
        return replace(port, shape=tuple(self.sizes[d] if isinstance(d, str) else d for d in port.shape))


def _returned(program: Program) -> list[fx.Node]:
    return list(program.graph.output_node().args[0])  # type: ignore[arg-type]


def _propagate(program: Program, shapes: dict[str, tuple[int, ...]]) -> int:
    mode, values, changed = FakeTensorMode(), {}, 0
    with mode, torch.no_grad():
        for node in list(program.graph.nodes):
            if node.op == "placeholder":
                old = node.meta["val"]
                shape = shapes.get(node.name, tuple(old.shape))
                values[node] = node.meta["val"] = torch.empty(shape, dtype=old.dtype)
            elif node.op == "call_function":
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])  # type: ignore[misc]
                result: Any = node.target(*args, **kwargs)  # type: ignore[operator]
                values[node] = node.meta["val"] = result
                changed += _make_literal(node, result)
    for name in program.exported._state_dict:
        old = program.exported._state_dict[name]
        with mode:
            program.exported._state_dict[name] = torch.empty(old.shape, dtype=old.dtype)
    for spec in program.exported.graph_signature.output_specs:
        if spec.kind == OutputKind.USER_OUTPUT and isinstance(spec.arg, ConstantArgument):
            raise AssertionError("an output became a constant")
    return changed


def _make_literal(node: fx.Node, result: Any) -> int:
    if node.target is operator.getitem or isinstance(result, (torch.Tensor, tuple, list)):
        return 0
    for user in list(node.users):
        user.args = fx.node.map_arg(user.args, lambda n: result if n is node else n)
        user.kwargs = fx.node.map_arg(user.kwargs, lambda n: result if n is node else n)
    return 1
