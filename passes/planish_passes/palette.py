"""Weights as indices into small tables of values (palettes), found by k-means.

Neighbouring output channels share one table: `tables[row // (N / G)][index]`. A community
measurement has 4-bit tables for 32 channels stay on the Neural Engine, where blockwise integers of small models did not
(alvaro-videla.com/ane-book).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from planish_passes.errors import PlanishError
from planish_passes.expected import FORMS
from planish_passes.infra import PassResult
from planish_passes.numerics import role
from planish_passes.ops import composite
from planish_passes.program import Program, add_weight, finish, op_name
from planish_passes.quantise import INT8, Quantise, tables
from planish_passes.weights import TensorSpec

INDICES, TABLES = ".lut_indices", ".lut_tables"
ROUNDS = 60  # of Lloyd's algorithm; on weights of a model it moves nothing after about 40
_BINS = 512  # of the histogram that the first entries come from
_BLOCK = 1 << 22  # values that are sorted at a time

FORMS["planish.linear_lut"] = "aten.linear"


def look_up(indices: Tensor, entries: Tensor) -> Tensor:
    """uint8 [N, K] and tables [G, E] to the values [N, K]; G divides N."""
    rows, columns = indices.shape
    grouped = indices.view(entries.shape[0], -1).long()
    return entries.gather(1, grouped).view(rows, columns)


@composite(
    "linear_lut(Tensor x, Tensor indices, Tensor tables, Tensor? bias) -> Tensor",
    lambda x, indices, *_: x.new_empty((*x.shape[:-1], indices.shape[0])),
)
def linear_lut(x: Tensor, indices: Tensor, tables: Tensor, bias: Tensor | None) -> Tensor:
    """x @ look_up(indices, tables)^T + bias.

    Args:
        x: [..., K].
        indices: uint8 [N, K].
        tables: [G, E], G divides N: neighbouring rows share a table of E values.
        bias: [N] or None.
    """
    return torch.nn.functional.linear(x, look_up(indices, tables.to(x.dtype)), bias)


@dataclass(frozen=True)
class Palette:
    """Indices and tables of a weight.

    Args:
        indices: uint8 [N, K], below E.
        tables: float32 [G, E], ascending, every value exactly representable in float16; G divides N.
    """

    indices: Tensor
    tables: Tensor

    def dequantize(self) -> Tensor:
        """float32 [N, K]."""
        return look_up(self.indices, self.tables)


def cluster(weight: Tensor, group: int, bits: int = 4) -> Palette:
    """The tables that make the squared error small, by Lloyd's algorithm on sorted values (no random start).

    Args:
        weight: any float dtype, [N, K].
        group: output channels that share a table; divides N.
        bits: width of an index; a table has 2^bits entries.

    Raises:
        PlanishError: the group does not divide N, or the weight holds NaN or infinite values.
    """
    rows, columns = weight.shape
    if rows % group:
        raise PlanishError(
            f"{rows} output channels do not divide into groups of {group}", "palette", "choose another group"
        )
    if not bool(torch.isfinite(weight).all()):
        raise PlanishError("the weight holds NaN or infinite values", "palette", "check the checkpoint")
    indices = torch.empty(rows, columns, dtype=torch.uint8)
    found = torch.empty(rows // group, 2**bits)
    step = max(1, _BLOCK // (group * columns))
    for at in range(0, rows // group, step):
        span = slice(at * group, (at + step) * group)
        values = weight[span].float().reshape(-1, group * columns)
        entries = _lloyd(values.double(), 2**bits)
        entries = entries.clamp(-65504, 65504).half().float()  # as files hold them; indices are chosen for these
        found[at : at + len(entries)] = entries
        middles = (entries[:, 1:] + entries[:, :-1]) / 2
        indices[span] = torch.searchsorted(middles, values).to(torch.uint8).view(-1, columns)
    return Palette(indices, found)


def _lloyd(values: Tensor, entries: int) -> Tensor:
    """Ascending entries [G, E] for values [G, n], float64."""
    ordered = values.sort(dim=1).values
    moment = torch.nn.functional.pad(ordered.cumsum(1), (1, 0))
    centres = _first(ordered, entries)
    ends = torch.zeros(len(values), 1, dtype=torch.int64), torch.full((len(values), 1), values.shape[1])
    for _ in range(ROUNDS):
        cuts = torch.searchsorted(ordered, (centres[:, 1:] + centres[:, :-1]) / 2)
        cuts = torch.cat([ends[0], cuts, ends[1]], 1)
        held = cuts.diff(dim=1)
        total = moment.gather(1, cuts[:, 1:]) - moment.gather(1, cuts[:, :-1])
        moved = torch.where(held > 0, total / held.clamp(min=1), centres).sort(dim=1).values
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def _first(ordered: Tensor, entries: int) -> Tensor:
    """Spacing by the cube root of the density, which is the best one for many entries (Panter and Dite, 1951)."""
    low, high = ordered[:, :1], ordered[:, -1:]
    edges = low + (high - low) * torch.linspace(0, 1, _BINS + 1, dtype=ordered.dtype)
    counts = torch.searchsorted(ordered, edges[:, 1:].contiguous(), right=True).double()
    density = torch.diff(counts, dim=1, prepend=torch.zeros_like(low)).clamp(min=0) ** (1 / 3)
    share = density.cumsum(1) / density.sum(1, keepdim=True).clamp(min=1e-300)
    wanted = (torch.arange(entries, dtype=ordered.dtype) + 0.5).div(entries).expand(len(ordered), -1).contiguous()
    return edges.gather(1, torch.searchsorted(share, wanted).clamp(max=_BINS - 1) + 1)


@dataclass(frozen=True)
class Palettise:
    """Weights of linears to palettes; embedding tables (and heads tied to them) are left to `Quantise`.

    Args:
        group: output channels that share a table, halved for weights whose channels it does not divide.
        bits: width of an index.
        leaves: weights that are not touched.
    """

    group: int = 16
    bits: int = 4
    leaves: frozenset[str] = frozenset()

    def run(self, program: Program) -> PassResult:
        """See the class."""
        plan, changed = Quantise(INT8).plan(program), 0
        for name, (_, nodes) in plan.weights.items():
            if name not in tables(program) and name not in self.leaves:
                program = self._weight(program, name, nodes)
                changed += len(nodes)
        return PassResult(finish(program), changed, plan.refused)

    def _weight(self, program: Program, name: str, nodes: list[fx.Node]) -> Program:
        rows, columns = program.weights.spec(name).shape
        group = self.group
        while rows % group:
            group //= 2
        specs = {
            name + INDICES: TensorSpec((rows, columns), torch.uint8),
            name + TABLES: TensorSpec((rows // group, 2**self.bits), torch.float32),
        }

        def made(weight: Tensor) -> tuple[Tensor, Tensor]:
            palette = cluster(weight, group, self.bits)
            return palette.indices, palette.tables

        if name + INDICES not in program.weights:
            program = replace(program, weights=program.weights.derive_together(specs, (name,), made))
        with nodes[0].meta["val"].fake_mode:
            placed = [add_weight(program, n, torch.empty(s.shape, dtype=s.dtype)) for n, s in specs.items()]
        for node in nodes:
            bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
            with program.graph.inserting_before(node):
                new = program.graph.call_function(
                    torch.ops.planish.linear_lut.default, (node.args[0], placed[0], placed[1], bias)
                )
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
            program.graph.erase_node(node)
        return program


def sensitive(program: Program) -> frozenset[str]:
    """Weights of linears that make the values of an attention or feed an activation function.

    Of MiniLM's kinds of linears these two gain most from 8 bits, for the bytes that it costs.
    """
    names = program.weight_names()
    nodes = (n for n in program.graph.nodes if n.op == "call_function" and op_name(n) == "aten.linear")
    return frozenset(
        names[n.args[1].name] for n in nodes if n.args[1].name in names and role(n) == "int8_token_residual"
    )


def palettes(program: Program) -> dict[str, Palette]:
    """The palettes of a program, by the name of the weight that they replace."""
    names, found = program.weight_names(), defaultdict[str, Palette]()
    for node in program.graph.nodes:
        if node.op == "call_function" and op_name(node) == "planish.linear_lut":
            name = names[node.args[1].name].removesuffix(INDICES)
            if name not in found:
                found[name] = Palette(program.weights.read(name + INDICES), program.weights.read(name + TABLES))
    return dict(found)
