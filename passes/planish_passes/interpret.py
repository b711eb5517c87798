"""The reading interpreter: runs a program in plain torch, each weight read when its first user runs.

It gives the yardstick and the float program bounded memory: a weight lives from its first to its last use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from planish_passes.match import is_op
from planish_passes.ops import BLOCK, quantize_activations
from planish_passes.program import Program

LARGE = 64 << 20  # bytes of a weight's integers from which on they are read in rows
Tap = Callable[[fx.Node, Tensor], None]


class _Reader(fx.Interpreter):
    def __init__(
        self,
        program: Program,
        compute: torch.dtype,
        round_to: torch.dtype | None,
        tap: Tap | None,
        forced: Mapping[str, Tensor],
    ) -> None:
        super().__init__(program.exported.graph_module, garbage_collect_values=True)
        self._names = program.weight_names()
        self._weights = program.weights
        self._compute, self._round_to, self._tap, self._forced = compute, round_to, tap, forced
        self._feed: dict[str, Tensor] = {}

    def go(self, feed: dict[str, Tensor]) -> tuple[Tensor, ...]:
        self._feed = feed
        with torch.no_grad():
            return tuple(self.run(enable_io_processing=False))

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        raise AssertionError("placeholders are handled in run_node")

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "placeholder":
            return _Pending(n.name) if n.name in self._names else self._cast(self._feed[n.name])
        result = self._in_rows(n) if self._is_large(n) else super().run_node(n)
        if isinstance(result, Tensor):
            if self._round_to is not None and result.dtype == self._compute:
                result = result.to(self._round_to).to(self._compute)
            if self._tap is not None and n.op == "call_function":
                self._tap(n, result)
            if n.name in self._forced:
                return self._forced[n.name].to(result.dtype)
        return result

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[Any, Any]:
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return fx.node.map_aggregate((args, kwargs), self._resolve)  # type: ignore[return-value]

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if self._compute == torch.float64:
            args, kwargs = fx.node.map_aggregate((args, kwargs), _widen)  # type: ignore[misc]
        return super().call_function(target, args, kwargs)

    def _is_large(self, n: fx.Node) -> bool:
        """A quantised weight that is better read some rows at a time."""
        if not is_op(n, "planish.linear_q", "planish.embedding_q"):
            return False
        weight = self.env[n.args[1]]  # type: ignore[index]
        if not isinstance(weight, _Pending):
            return False
        name = self._names[weight.name]
        return self._weights.spec(name).nbytes > LARGE and len(self._weights.spans(name)) > 1

    def _in_rows(self, n: fx.Node) -> Tensor:
        given: Any = fx.node.map_arg(n.args, lambda m: self.env[m])
        first, *parts = given
        if is_op(n, "planish.embedding_q"):
            wanted, places = first.unique(return_inverse=True)
            rows = zip(*(self._rows(parts[:3], i, i + 1) for i in wanted.tolist()), strict=True)
            held = [None if column[0] is None else torch.cat(column) for column in rows]
            return torch.ops.planish.embedding_q(places, *held, parts[3])  # type: ignore[no-any-return]
        bias, (bits, activations) = self._resolve(parts[3]), parts[4:]
        rounded = quantize_activations(first, activations)
        count, columns = self._weights.spec(self._names[parts[0].name]).shape
        found, step = [], max(1, BLOCK // columns)  # as the operator itself does
        for at in range(0, count, step):
            stop = min(at + step, count)
            part = None if bias is None else bias[at:stop]
            found.append(torch.ops.planish.linear_q(rounded, *self._rows(parts[:3], at, stop), part, bits, "none"))
        return torch.cat(found, dim=-1)

    def _rows(self, parts: Sequence[Any], start: int, stop: int) -> list[Tensor | None]:
        names = [None if p is None else self._names[p.name] for p in parts]
        return [None if n is None else self._cast(self._weights.rows(n, start, stop)) for n in names]

    def _resolve(self, value: Any) -> Any:
        return self._cast(self._weights.read(self._names[value.name])) if isinstance(value, _Pending) else value

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._compute) if tensor.is_floating_point() else tensor


class _Pending:
    """A weight that has not been read yet."""

    def __init__(self, name: str) -> None:
        self.name = name


def _widen(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def interpret(
    program: Program,
    inputs: Mapping[str, Tensor],
    *,
    compute: torch.dtype = torch.float32,
    round_to: torch.dtype | None = None,
    tap: Tap | None = None,
    forced: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Run a program.

    Args:
        program: any program, before or after any pass.
        inputs: user inputs by port name.
        compute: dtype of floating arithmetic; float64 shows the rounding noise of float32.
        round_to: round every floating result to this dtype, as a runtime that stores activations in it does.
        tap: called with each node and its value.
        forced: node name -> value that takes the place of the node's own, after the tap has seen that.

    Returns:
        Outputs by port name, in `compute`.
    """
    names = program.weight_names()
    placeholders = [n.name for n in program.graph.nodes if n.op == "placeholder" and n.name not in names]
    feed = dict(zip(placeholders, (inputs[p.name] for p in program.inputs), strict=True))
    results = _Reader(program, compute, round_to, tap, forced or {}).go(feed)
    return dict(zip((p.name for p in program.outputs), results, strict=True))
