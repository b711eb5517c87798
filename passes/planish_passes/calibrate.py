"""Calibrated quantisation: the program runs once, node by node, and each linear is rounded when it is reached.

Every linear sees the inputs that the already rounded part of the model gives it, and those that the float model gives
it, so that later weights make up for earlier errors. Memory holds the values that are still to be read (not one per
node), and the second moment of the inputs at hand; both do not grow with the depth of the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from planish_passes.clusters import cluster_calibrated
from planish_passes.gptq import BLOCK, Curvature, curvature, gptq
from planish_passes.ops import dequantize
from planish_passes.palette import Palette, PaletteFormat
from planish_passes.program import Program, op_name
from planish_passes.rounding import Rounded, search
from planish_passes.weights import WeightFormat

Batch = Mapping[str, Tensor]
Format = WeightFormat | PaletteFormat
Made = Rounded | Palette


def calibrate(
    program: Program,
    batches: Sequence[Batch],
    formats: Mapping[str, Format],
    *,
    damping: float = 0.01,
    compensation: float = 0.5,
    shrinkage: float = 0.5,
) -> Iterator[tuple[str, Made]]:
    """Round the weights of linears by GPTQ, to integers or to palettes, and those of embeddings by search.

    Weights are yielded as they are made, in graph order, each once: the caller stores or writes them. A table that is
    also the weight of a linear (a tied head) is rounded for the linear. A weight that several linears use is rounded
    for the first of them. Nodes that no linear of `formats` depends on are not run.

    Args:
        program: before `Quantise`, with `aten.linear` and `aten.embedding` calls.
        batches: user inputs by port name; a few thousand tokens in all. All batches go through a node before the next
            node runs, so the size of one batch bounds the memory of temporaries.
        formats: weight name -> format; other weights stay as they are. Names that no such call uses are ignored.
            Tables of embeddings have integers.
        damping, shrinkage: see `curvature`.
        compensation: share of the difference between the float model's and the rounded model's inputs of a linear that
            its weight makes up for. 0 runs the rounded model only: about half the time and memory.

    Raises:
        PlanishError: a group does not divide the input features, or activations are not finite.
    """
    run = _Run(program, batches, formats, damping, compensation, shrinkage)
    for node in program.graph.nodes:
        if node in run.needed:
            with torch.no_grad():  # not while the caller has the turn
                made = run.step(node)
            yield from made


@dataclass
class _Run:
    program: Program
    batches: Sequence[Batch]
    formats: Mapping[str, Format]
    damping: float
    compensation: float
    shrinkage: float
    # Node -> one value per batch as the rounded model computes it, and then, to compensate, as the float model does.
    values: dict[fx.Node, list[Any]] = field(default_factory=dict)
    moments: dict[fx.Node, Curvature] = field(default_factory=dict)
    rounded: dict[str, Made] = field(default_factory=dict)  # while a later node still uses the weight

    def __post_init__(self) -> None:
        names = self.program.weight_names()
        self.names = {n: names[n.name] for n in self.program.graph.nodes if n.name in names}
        self.sites = [n for n in self.program.graph.nodes if self._covered(n) is not None]
        self.needed = _ancestors(self.sites)
        self.uses: Counter[fx.Node] = Counter(a for n in self.needed for a in set(n.all_input_nodes))
        self.readers: Counter[fx.Node] = Counter(_input(n) for n in self.sites if op_name(n) == "aten.linear")
        self.left: Counter[str] = Counter(self._covered(n) or "" for n in self.sites)
        self.first: dict[str, fx.Node] = {}  # where each weight of a linear is used first
        for node in self.sites:
            if op_name(node) == "aten.linear":
                self.first.setdefault(self._covered(node) or "", node)
        self.models = 2 if self.compensation else 1  # the rounded one, and the float one
        inputs = [n for n in self.program.graph.nodes if n.op == "placeholder" and n not in self.names]
        self.ports = {n: p.name for n, p in zip(inputs, self.program.inputs, strict=True)}

    def step(self, node: fx.Node) -> list[tuple[str, Made]]:
        """Run one node for every batch, and forget what nothing reads any more; returns what was rounded."""
        if node in self.names:
            return []
        name = self._covered(node)
        made = [] if name is None else self._round(node, name)
        if node.op == "placeholder":
            self.values[node] = [_widen(b[self.ports[node]]) for b in self.batches] * self.models
        elif self.uses[node]:  # the last linear is rounded, and not run
            self.values[node] = self._evaluate(node, name)
        for source in set(node.all_input_nodes):
            self.uses[source] -= 1
            if not self.uses[source]:
                self.values.pop(source, None)
        if name is not None:
            self.left[name] -= 1
            if not self.left[name]:
                self.rounded.pop(name, None)
        return made

    def _round(self, node: fx.Node, name: str) -> list[tuple[str, Made]]:
        linear, made = op_name(node) == "aten.linear", []
        if name not in self.rounded and (linear or name not in self.first):
            fresh = self._for_linear(node, name) if linear else {name: search(*self._table(name))}
            self.rounded |= fresh
            made = list(fresh.items())
        if linear:
            source = _input(node)
            self.readers[source] -= 1
            if not self.readers[source]:
                self.moments.pop(source, None)
        return made

    def _for_linear(self, node: fx.Node, name: str) -> dict[str, Made]:
        """The weight, and others that are rounded in one go with it."""
        format, inputs, read = self.formats[name], self._curvature(node), self.program.weights.read
        if isinstance(format, PaletteFormat):
            return {name: cluster_calibrated(read(name), format, inputs)}
        names = self._alike(node, name)
        weights = [read(n) for n in names]
        made = gptq(torch.cat(weights), inputs, format)
        rows = [len(w) for w in weights]
        zeros = [None] * len(rows) if made.zero_points is None else made.zero_points.split(rows)
        parts = zip(made.values.split(rows), made.scales.split(rows), zeros, strict=True)
        return {n: Rounded(*part) for n, part in zip(names, parts, strict=True)}

    def _alike(self, node: fx.Node, name: str) -> list[str]:
        """This weight, and small ones of the same format that are multiplied with the same input."""
        found, room = [name], BLOCK - self._size(name)
        for other, first in self.first.items():
            same = _input(first) is _input(node) and self.formats[other] == self.formats[name]
            if same and other not in self.rounded and other != name and self._size(other) <= room:
                found.append(other)
                room -= self._size(other)
        return found

    def _size(self, name: str) -> int:
        return prod(self.program.weights.spec(name).shape)

    def _table(self, name: str) -> tuple[Tensor, WeightFormat]:
        format = self.formats[name]
        assert isinstance(format, WeightFormat), f"{name} is a table of an embedding"
        return self.program.weights.read(name), format

    def _curvature(self, node: fx.Node) -> Curvature:
        source = _input(node)
        if source not in self.moments:
            values = [v.reshape(-1, v.shape[-1]) for v in self.values[source]]
            given, wanted = values[: len(self.batches)], values[len(self.batches) :]
            drift = None
            if wanted:
                drift = _product([w - g for w, g in zip(wanted, given, strict=True)], given) * self.compensation
            self.moments[source] = curvature(_squared(given), self.damping, drift, self.shrinkage)
        return self.moments[source]

    def _evaluate(self, node: fx.Node, name: str | None) -> list[Any]:
        if node.op == "get_attr":
            return [getattr(self.program.exported.graph_module, str(node.target))] * (self.models * len(self.batches))
        assert callable(node.target), node.format_node()
        if name is not None and op_name(node) == "aten.embedding":
            return self._look_up(node, name)
        weights = {n: self._weight(n) for n in set(node.all_input_nodes) & set(self.names)}
        rounded = dict(weights)
        if name is not None:
            rounded[node.args[1]] = _dense(self.rounded[name])
        results = []
        for batch in range(self.models * len(self.batches)):
            held = rounded if batch < len(self.batches) else weights
            args, kwargs = fx.node.map_arg(
                (node.args, node.kwargs), lambda n, b=batch, w=held: w[n] if n in w else self.values[n][b]
            )
            results.append(node.target(*args, **kwargs))
        return results

    def _look_up(self, node: fx.Node, name: str) -> list[Tensor]:
        """Rows of a table, rounded after they were looked up: a table can be larger than everything else."""
        (table, format), ids = self._table(name), node.args[1]
        assert isinstance(ids, fx.Node)
        found = []
        for number, batch in enumerate(self.values[ids]):
            which, places = torch.unique(batch, return_inverse=True)
            rows = _widen(table[which])
            if number < len(self.batches):
                rows = dequantize(*search(rows, format), torch.float32)
            found.append(rows[places])
        return found

    def _weight(self, node: fx.Node) -> Tensor:
        return _widen(self.program.weights.read(self.names[node]))

    def _covered(self, node: fx.Node) -> str | None:
        """The weight that this node makes us round."""
        if node.op != "call_function" or op_name(node) not in ("aten.linear", "aten.embedding"):
            return None
        weight = node.args[1 if op_name(node) == "aten.linear" else 0]
        name = self.names.get(weight) if isinstance(weight, fx.Node) else None
        return name if name in self.formats else None


def _dense(made: Made) -> Tensor:
    return made.dequantize() if isinstance(made, Palette) else dequantize(*made, torch.float32)


def _input(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _squared(values: Sequence[Tensor]) -> Tensor:
    """x^T x, and only what lies on and above the diagonal is computed."""
    columns = values[0].shape[1]
    total, step = torch.zeros(columns, columns), max(128, -(-columns // 6))
    for start in range(0, columns, step):
        for x in values:
            total[start : start + step, start:].addmm_(x[:, start : start + step].t(), x[:, start:])
    return total.triu_().add_(total.triu(1).t())


def _product(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    total = left[0].t() @ right[0]
    for a, b in zip(left[1:], right[1:], strict=True):
        total.addmm_(a.t(), b)
    return total


def _ancestors(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _widen(value: Any) -> Any:
    return value.to(torch.float32) if isinstance(value, Tensor) and value.is_floating_point() else value
