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
    """Give named dimensions numbers; sizes computed from them become constants in the graph.

    Args:
        sizes: dimension name -> size, e.g. {"batch": 1, "sequence": 128}; others stay dynamic.
    """

    sizes: Mapping[str, int]

    def run(self, program: Program) -> PassResult:
        """See the class.

        Raises:
            PlanishError: a size lies outside what the program was traced for.
        """
        if not program.axes:
            return PassResult(program, 0)
        left = {axis: ends for axis, ends in program.axes.items() if axis not in self.sizes}
        for axis, (low, high) in program.axes.items():
            if axis not in left and not low <= self.sizes[axis] <= high:
                raise PlanishError(
                    f"{axis} = {self.sizes[axis]} is outside what the model takes ({low} to {high})",
                    f"program {program.name!r}",
                    "choose another --sequence-length",
                )
        inputs = {n: self._fixed(p).shape for n, p in zip(_given(program), program.inputs, strict=True)}
        if left:
            return self._partly(program, inputs, left)
        changed = _propagate(program, {n.name: shape for n, shape in inputs.items()})  # type: ignore[misc]
        program = replace(
            finish(program),
            inputs=tuple(self._fixed(p) for p in program.inputs),
            outputs=tuple(self._fixed(p, n) for p, n in zip(program.outputs, _returned(program), strict=True)),
            axes={},
        )
        program.exported._range_constraints = {}
        return PassResult(program, changed)

    def _partly(
        self, program: Program, inputs: Mapping[fx.Node, tuple[int | str, ...]], left: dict[str, tuple[int, int]]
    ) -> PassResult:
        returned = list(zip(program.outputs, _returned(program), strict=True))
        symbols = {str(s): d for p, n in returned for d, s in zip(p.shape, n.meta["val"].shape, strict=True)}
        changed = propagate(program, inputs)
        program = finish(program)
        outputs = []
        for port, node in zip(program.outputs, _returned(program), strict=True):
            shape = tuple(d if isinstance(d, int) else symbols[str(d)] for d in node.meta["val"].shape)
            outputs.append(replace(port, shape=shape))
        ports = tuple(self._fixed(p) for p in program.inputs)
        return PassResult(replace(program, inputs=ports, outputs=tuple(outputs), axes=left), changed)

    def _fixed(self, port: Port, node: fx.Node | None = None) -> Port:
        if node is not None:
            return replace(port, shape=tuple(int(s) for s in node.meta["val"].shape))
        return replace(port, shape=tuple(self.sizes.get(d, d) if isinstance(d, str) else d for d in port.shape))


def propagate(program: Program, inputs: Mapping[fx.Node, tuple[int | str, ...]]) -> int:
    """Shapes of all nodes anew, where some dimensions of the inputs are numbers now and others are symbols still.

    Args:
        program: changed in place.
        inputs: placeholder -> its shape; names stand for the symbols that it had.

    Returns:
        Sizes that became numbers in the graph.
    """
    values, changed = dict[fx.Node, Any](), 0
    mode = next(n.meta["val"].fake_mode for n in inputs)
    with mode, torch.no_grad():
        for node in list(program.graph.nodes):
            if node.op == "placeholder":
                old = node.meta["val"]
                if node in inputs:
                    sizes = zip(inputs[node], old.shape, strict=True)
                    node.meta["val"] = torch.empty([d if isinstance(d, int) else s for d, s in sizes], dtype=old.dtype)
                values[node] = node.meta["val"]
            elif node.op == "call_function":
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])  # type: ignore[misc]
                values[node] = node.meta["val"] = node.target(*args, **kwargs)  # type: ignore[operator]
                if isinstance(values[node], (int, bool, float)):
                    changed += _make_literal(node, values[node])
    return changed


def _given(program: Program) -> list[fx.Node]:
    names = program.weight_names()
    return [n for n in program.graph.nodes if n.op == "placeholder" and n.name not in names]


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
