"""The reading interpreter: runs a program in plain torch, each weight read when its first user runs.

It gives the yardstick and the float program bounded memory: a weight lives from its first to its last use. Several runs
of one program go from node to node together, so that a weight is read, and made real, once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from planish_passes.match import is_op
from planish_passes.ops import BLOCK, dequantize, quantize_activations
from planish_passes.program import Program
from planish_passes.weights import WeightStore

LARGE = 64 << 20  # bytes of a weight's integers from which on they are read in rows
Tap = Callable[[fx.Node, Tensor], None]


@dataclass(frozen=True)
class Run:
    """One run of a program.

    Args:
        inputs: user inputs by port name.
        compute: dtype of floating arithmetic; float64 shows the rounding noise of float32.
        round_to: round every floating result to this dtype, as a runtime that stores activations in it does.
        tap: called with each node and its value.
        forced: node name -> value that takes the place of the node's own, after the tap has seen that.
        instead: weight name -> value to compute with instead of the program's own.
        returns: outputs that the caller wants back, which no others are kept for; empty = all.
    """

    inputs: Mapping[str, Tensor]
    compute: torch.dtype = torch.float32
    round_to: torch.dtype | None = None
    tap: Tap | None = None
    forced: Mapping[str, Tensor] = field(default_factory=dict)
    instead: Mapping[str, Tensor] = field(default_factory=dict)
    returns: Collection[str] = ()


def interpret(
    program: Program,
    inputs: Mapping[str, Tensor],
    *,
    compute: torch.dtype = torch.float32,
    round_to: torch.dtype | None = None,
    tap: Tap | None = None,
    forced: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Run a program, before or after any pass; see `Run`.

    Returns:
        Outputs by port name, in `compute`.
    """
    return interpret_all(program, [Run(inputs, compute, round_to, tap, forced or {})])[0]


def interpret_all(program: Program, runs: Sequence[Run]) -> list[dict[str, Tensor]]:
    """The outputs of each run, as `interpret` returns them; activations of all of them are in memory together."""
    held = _Held(program.weights)
    lanes = [_Lane(program, run, held) for run in runs]
    linears = (torch.ops.planish.linear_q.default,)
    results: list[Any] = []
    with torch.no_grad():
        for node in program.exported.graph_module.graph.nodes:
            try:
                if node.target in linears and isinstance(lanes[0].env[node.args[1]], _Pending):
                    results = _linears(node, lanes, held)
                else:
                    results = [lane.compute_node(node) for lane in lanes]
            except Exception as problem:
                problem.add_note(f"at {node.format_node()}")
                raise
            for lane, result in zip(lanes, results, strict=True):
                lane.put(node, result)
            held.clear()
    names = [p.name for p in program.outputs]
    return [
        {name: value for name, value in zip(names, found, strict=True) if name in lane.returns}
        for lane, found in zip(lanes, results, strict=True)
    ]


@dataclass(frozen=True)
class _Pending:
    """A weight that has not been read yet."""

    name: str


@dataclass(frozen=True)
class _Input:
    """An input that has not been cast yet: long caches are many, and each has one user."""

    value: Tensor


class _Held:
    """Weights that the node at hand has read: each once, whichever lane asks."""

    def __init__(self, store: WeightStore) -> None:
        self.store = store
        self._read: dict[tuple[str, torch.dtype | None, int], Tensor] = {}

    def read(self, name: str, lane: _Lane) -> Tensor:
        """In the lane's dtype, where it is floating."""
        other = lane.told.instead.get(name)
        key = (name, lane.told.compute if self.store.spec(name).dtype.is_floating_point else None, id(other))
        if key not in self._read:
            self._read[key] = lane.cast(self.store.read(name) if other is None else other)
        return self._read[key]

    def rows(self, name: str, lane: _Lane, start: int, stop: int) -> Tensor:
        """Some of them: from what is held, from the store where that is better read in rows."""
        other = lane.told.instead.get(name)
        if other is None and self.in_rows(name):
            return lane.cast(self.store.rows(name, start, stop))
        return self.read(name, lane)[start:stop]

    def in_rows(self, name: str) -> bool:
        """Large, and some rows of it can be had alone."""
        return self.store.spec(name).nbytes > LARGE and len(self.store.spans(name)) > 1

    def clear(self) -> None:
        """The node is done in all lanes."""
        self._read.clear()


class _Lane(fx.Interpreter):
    """One run."""

    def __init__(self, program: Program, run: Run, held: _Held) -> None:
        super().__init__(program.exported.graph_module, garbage_collect_values=False)
        self.told, self._held = run, held
        self.returns = set(run.returns or (p.name for p in program.outputs))
        self._returned = [p.name in self.returns for p in program.outputs]
        self._last = self._last_uses()
        self._names = program.weight_names()
        users = [n.name for n in program.graph.nodes if n.op == "placeholder" and n.name not in self._names]
        self._feed = dict(zip(users, (run.inputs[p.name] for p in program.inputs), strict=True))

    def compute_node(self, node: fx.Node) -> Any:
        """The node's value, from what is in `env`."""
        if node.op == "placeholder":
            return _Pending(self._names[node.name]) if node.name in self._names else _Input(self._feed[node.name])
        if node.op == "output":
            given: Any = node.args[0]
            return tuple(
                self.resolve(self.env[n]) if wanted and isinstance(n, fx.Node) else None if not wanted else n
                for n, wanted in zip(given, self._returned, strict=True)
            )
        if node.op == "call_function" and is_op(node, "planish.embedding_q"):
            weight = self.env[node.args[1]]  # type: ignore[index]
            if isinstance(weight, _Pending) and self._held.in_rows(weight.name):
                return self._looked_up(node)
        return super().run_node(node)

    def put(self, node: fx.Node, value: Any) -> None:
        """Make it the node's value, and drop what no later node needs."""
        if isinstance(value, Tensor) and node.op != "placeholder":
            value = self._settled(node, value)
        self.env[node] = value
        for unused in self._last.get(node, ()):
            del self.env[unused]

    def _last_uses(self) -> dict[fx.Node, list[fx.Node]]:
        """Node -> what nothing needs once it is done."""
        last: dict[fx.Node, fx.Node] = {}
        for node in self.graph.nodes:
            last[node] = node
            last |= dict.fromkeys(self._sources(node), node)
        done: dict[fx.Node, list[fx.Node]] = {}
        for node, user in last.items():
            done.setdefault(user, []).append(node)
        return done

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        if node.op != "output":
            return node.all_input_nodes
        given: Any = node.args[0]
        return [n for n, wanted in zip(given, self._returned, strict=True) if wanted and isinstance(n, fx.Node)]

    def _settled(self, node: fx.Node, value: Tensor) -> Tensor:
        run = self.told
        if run.round_to is not None and value.dtype == run.compute:
            value = value.to(run.round_to).to(run.compute)
        if run.tap is not None and node.op == "call_function":
            run.tap(node, value)
        return run.forced[node.name].to(value.dtype) if node.name in run.forced else value

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        raise AssertionError("placeholders are handled in compute_node")

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[Any, Any]:
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return fx.node.map_aggregate((args, kwargs), self.resolve)  # type: ignore[return-value]

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if self.told.compute == torch.float64:
            args, kwargs = fx.node.map_aggregate((args, kwargs), _widen)  # type: ignore[misc]
        return super().call_function(target, args, kwargs)

    def _looked_up(self, node: fx.Node) -> Tensor:
        """Rows of a large table, and no others."""
        given: Any = fx.node.map_arg(node.args, lambda m: self.env[m])
        wanted, places = self.resolve(given[0]).unique(return_inverse=True)
        parts = [
            None if p is None else torch.cat([self._held.rows(p.name, self, i, i + 1) for i in wanted.tolist()])
            for p in given[1:4]
        ]
        return torch.ops.planish.embedding_q(places, *parts, given[4])  # type: ignore[no-any-return]

    def resolve(self, value: Any) -> Any:
        """A weight's value in the place of its name, and an input's in the lane's dtype."""
        if isinstance(value, _Input):
            return self.cast(value.value)
        return self._held.read(value.name, self) if isinstance(value, _Pending) else value

    def cast(self, tensor: Tensor) -> Tensor:
        """In the lane's dtype, where it is floating."""
        return tensor.to(self.told.compute) if tensor.is_floating_point() else tensor


def _linears(node: fx.Node, lanes: Sequence[_Lane], held: _Held) -> list[Tensor]:
    """`planish.linear_q` of every lane, some rows of the weight at a time."""
    given: list[Any] = [fx.node.map_arg(node.args, lambda m, lane=lane: lane.env[m]) for lane in lanes]  # type: ignore[misc]
    parts = [None if p is None else p.name for p in given[0][1:4]]
    count, columns = held.store.spec(given[0][1].name).shape
    values = [quantize_activations(lane.resolve(g[0]), g[6]) for g, lane in zip(given, lanes, strict=True)]
    biases = [lane.resolve(g[4]) for g, lane in zip(given, lanes, strict=True)]
    found = [x.new_empty((*x.shape[:-1], count)) for x in values]
    step = max(1, BLOCK // columns)  # as the operator itself does
    for start in range(0, count, step):
        stop = min(start + step, count)
        real: dict[tuple[Any, ...], Tensor] = {}
        for lane, x, bias, into in zip(lanes, values, biases, found, strict=True):
            key = (lane.told.compute, *(id(lane.told.instead.get(p)) for p in parts if p))
            if key not in real:
                integers, scales, zeros = (None if p is None else held.rows(p, lane, start, stop) for p in parts)
                assert integers is not None
                assert scales is not None
                real[key] = dequantize(integers, scales, zeros, x.dtype)
            part = None if bias is None else bias[start:stop]
            into[..., start:stop] = torch.nn.functional.linear(x, real[key], part)
    return found


def _widen(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
