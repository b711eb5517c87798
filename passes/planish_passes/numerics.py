"""Write a target's numerics into the program, so that the yardstick computes as the target does."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from planish_passes.infra import PassResult
from planish_passes.ops import ACTIVATIONS
from planish_passes.program import Program, op_name
from planish_passes.quantise import MINIMA

BY_ROLE = "int8_by_role"
BY_BLOCK = "int8_by_block"
BY_CACHE = "int8_by_cache"


@dataclass(frozen=True)
class RoundActivations:
    """Inputs of quantised linears are rounded as `activations` says (see `ops.quantize_activations`).

    `int8_by_role` spends a second int8 pass where one costs most accuracy, and none where the range is known:

    1. a linear that makes the values of an attention, or that feeds an activation function: `int8_token_residual`;
    2. a linear that reads a GELU: `uint8_token_after_gelu`;
    3. any other: `int8_token_symmetric`.

    `int8_by_block` rounds the inputs of weights in groups, and of weights of less than 8 bits, by the same groups, and
    those of other weights by role.

    `int8_by_cache` is `int8_token_pair` in programs with caches, in which an error is read again by every later token,
    and `int8_token_asymmetric` in others.
    """

    activations: str

    def run(self, program: Program) -> PassResult:
        """See the class."""
        changed = 0
        named = self.activations
        if named == BY_CACHE:
            named = "int8_token_pair" if program.states else "int8_token_asymmetric"
        for node in program.graph.nodes:
            if node.op == "call_function" and op_name(node) == "planish.linear_q":
                chosen = {BY_ROLE: role, BY_BLOCK: block}.get(named, lambda _: named)(node)
                node.args = (*node.args[:6], chosen)
                changed += 1
        program.exported.graph_module.recompile()
        return PassResult(program, changed)


_SHAPE_ONLY = frozenset(
    f"aten.{n}" for n in ("reshape", "view", "transpose", "permute", "unsqueeze", "expand", "clone")
)
_NONLINEAR = frozenset(f"aten.{n}" for n in ("gelu", "relu", "silu", "tanh", "sigmoid", "hardswish", "elu"))


def role(node: fx.Node) -> str:
    """The activation format that a quantised linear deserves by its place in the graph."""
    source = node.args[0]
    if isinstance(source, fx.Node) and source.op == "call_function" and op_name(source) == "aten.gelu":
        return "uint8_token_after_gelu"
    return "int8_token_residual" if any(map(_needs_precision, _readers(node))) else "int8_token_symmetric"


def block(node: fx.Node) -> str:
    """The activation format of a kernel that rounds by the groups of its weight."""
    columns, groups = (node.args[i].meta["val"].shape[1] for i in (1, 2))  # type: ignore[union-attr]
    rounded = f"int8_block{columns // groups}"
    # Weights of 8 bits in rows have a kernel of their own; narrower ones never do, also where a row is one group.
    whole = groups == 1 and (node.args[5] == 8 or rounded not in ACTIVATIONS)
    return role(node) if whole else rounded


def _readers(node: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """(reader, what it reads) through operators that only move data."""
    found: list[tuple[fx.Node, fx.Node]] = []
    for user in node.users:
        moves = user.op == "call_function" and op_name(user) in _SHAPE_ONLY
        found += _readers(user) if moves else [(user, node)]
    return found


def _needs_precision(pair: tuple[fx.Node, fx.Node]) -> bool:
    reader, read = pair
    if reader.op != "call_function":
        return False
    return op_name(reader) in _NONLINEAR or (op_name(reader) == "planish.attention" and reader.args[2] is read)


_SCALED = {"planish.attention": 6, "planish.cached_attention": 8}  # operator -> which argument is its scale


@dataclass(frozen=True)
class RoundWeights:
    """Floating weights, constants and attention scales are rounded to `dtype` (weights stay float32 tensors).

    Values beyond the range of `dtype`, such as mask fills, become its largest finite number. Minima of quantised
    weights stay as they are: they belong to numbers that are kept exactly.
    """

    dtype: torch.dtype

    def run(self, program: Program) -> PassResult:
        """See the class."""
        store, changed = program.weights, 0
        limit = torch.finfo(self.dtype).max

        def rounded(tensor: Tensor) -> Tensor:
            return tensor.clamp(-limit, limit).to(self.dtype).to(tensor.dtype)

        for name in program.weight_names().values():
            spec = store.spec(name)
            wide = spec.dtype.is_floating_point and spec.dtype.itemsize > self.dtype.itemsize
            if wide and not name.endswith(MINIMA):
                store = store.derive(name, (name,), rounded, spec, by_rows=True)
                changed += 1
        for node in program.graph.nodes:
            at = _SCALED.get(op_name(node)) if node.op == "call_function" else None
            if at is not None:
                node.update_arg(at, float(torch.tensor(node.args[at]).to(self.dtype)))
        program.exported.graph_module.recompile()
        return PassResult(replace(program, weights=store), changed)


@dataclass(frozen=True)
class RoundEpsilons:
    """Epsilons of normalisations become the nearest positive number of `dtype`.

    Where the values that are normalised are small, 1e-5 and what float16 makes of it (1.0014e-05) differ by more than
    one operation may be off.
    """

    dtype: torch.dtype

    def run(self, program: Program) -> PassResult:
        """See the class."""
        changed = 0
        for node in program.graph.nodes:
            if node.op != "call_function" or "norm" not in op_name(node):
                continue
            given = _epsilon(node)
            if given is None:
                continue
            at, epsilon = given
            rounded = float(torch.tensor(epsilon, dtype=torch.float64).to(self.dtype))
            rounded = rounded or torch.finfo(self.dtype).smallest_normal * torch.finfo(self.dtype).eps
            if rounded == epsilon or epsilon == 0:
                continue
            if isinstance(at, int):
                node.update_arg(at, rounded)
            else:
                node.update_kwarg(at, rounded)
            changed += 1
        program.exported.graph_module.recompile()
        return PassResult(program, changed)


def _epsilon(node: fx.Node) -> tuple[int | str, float] | None:
    """Where a normalisation has its epsilon (position or keyword) and its value, also where the call leaves it out."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    for at, argument in enumerate(node.target._schema.arguments):
        if argument.name in ("eps", "epsilon"):
            value = node.args[at] if at < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
            if not isinstance(value, float):
                return None  # rms_norm's default is the dtype's own
            return (at if at < len(node.args) else argument.name), value
    return None
