"""Put palettes in the place of linear weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from planish_passes.clusters import cluster
from planish_passes.infra import PassResult
from planish_passes.palette import INDICES, TABLES, PaletteFormat
from planish_passes.program import Program, add_weight, finish
from planish_passes.quantise import INT8, Quantise, tables
from planish_passes.weights import TensorSpec


@dataclass(frozen=True)
class Palettise:
    """Weights of linears to palettes; embedding tables (and heads tied to them) are left to `Quantise`.

    Weights whose indices are in the program's store already (calibration made them) are not clustered again.

    Args:
        formats: weight name -> format, of the weights that get one (`sites` are those that can).
    """

    formats: Mapping[str, PaletteFormat]

    def run(self, program: Program) -> PassResult:
        """See the class."""
        changed, found = 0, sites(program)
        for name, format in self.formats.items():
            program = _weight(program, name, found[name], format)
            changed += len(found[name])
        return PassResult(finish(program), changed)


def sites(program: Program) -> dict[str, list[fx.Node]]:
    """Weights of linears that no embedding reads, and the calls that use them."""
    shared = tables(program)
    return {n: nodes for n, (_, nodes) in Quantise(INT8).plan(program).weights.items() if n not in shared}


def fitting(format: PaletteFormat, rows: int) -> PaletteFormat:
    """The format with the largest group, halved as often as needed, that divides the output channels."""
    group = format.group
    while rows % group:
        group //= 2
    return replace(format, group=group)


def _weight(program: Program, name: str, nodes: list[fx.Node], format: PaletteFormat) -> Program:
    rows, columns = program.weights.spec(name).shape
    specs = {
        name + INDICES: TensorSpec((rows, columns), torch.uint8),
        name + TABLES: TensorSpec((rows // format.group, 2**format.bits), torch.float32),
    }

    def made(weight: Tensor) -> tuple[Tensor, Tensor]:
        palette = cluster(weight, format)
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
