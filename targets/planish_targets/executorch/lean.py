"""Make executorch's lowering cheaper without changing what it writes.

Measured on MiniLM and SmolLM2, three things took most of the time: provenance records that every retrace copies deeply,
passes of the XNNPACK delegate that retrace every subgraph even when it holds none of the operators that they are for,
and decomposing a program again in which there is nothing left to decompose. `decompose`, `retrace`, `in_place`,
`functional` and `sorting` make what is left cheap. Tests compare the files written with and without this: all is equal
but the numbers by which debuggers name operations.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch.export import ExportedProgram

from planish_targets.executorch.decompose import decompose
from planish_targets.executorch.functional import write_again
from planish_targets.executorch.idle import idle, skipped
from planish_targets.executorch.in_place import in_place
from planish_targets.executorch.partition import still
from planish_targets.executorch.replaced import replaced
from planish_targets.executorch.retrace import Memory, remembered, uncompiled
from planish_targets.executorch.sorting import in_order

_BATCH_NORM = ("aten.native_batch_norm", "aten._native_batch_norm", "aten.batch_norm")
_CHANNELS_LAST = (
    tuple(
        f"aten.{n}"
        for n in (
            "convolution",
            "upsample",
            "mean",
            "max",
            "amax",
            "avg_pool",
            "prelu",
            "_prelu",
            "index",
            "_unsafe_index",
        )
    )
    + _BATCH_NORM
)

# Pass of executorch.backends.xnnpack._passes -> what the names of the operators that it changes begin with. A pass that
# is not listed always runs.
ONLY_FOR: dict[str, tuple[str, ...]] = {
    "ConvertToUpsampleBilinear2d": ("aten.index", "aten.upsample", "aten._unsafe_index"),
    "ConvertToSDPAPass": ("aten.expand", "aten.scaled_dot_product"),
    "FuseBatchNormPass": _BATCH_NORM,
    "DecomposeBatchNorm": _BATCH_NORM,
    "DecomposeConcatenate": ("aten.cat",),
    "Conv1dUnsqueezePass": ("aten.convolution", *_BATCH_NORM),  # a batch norm becomes a convolution
    "PReLUReshapePass": ("aten._prelu_kernel",),
    "InsertPadQDQPass": ("aten.constant_pad_nd",),
    "FuseActivationPass": ("aten.relu", "aten.hardtanh"),
    "XNNPACKRemoveCloneOpsTransform": ("aten.clone", "dim_order_ops."),
    "DimOrderOpsRevertPass": ("dim_order_ops.",),
    "ConvertToLinearPass": ("aten.mm", "aten.addmm", "aten.bmm"),
    "PropagateCustomMetaPass": (),  # tags of weights in files of their own, which planish does not write
    "RemoveGetItemPass": ("aten.max", "aten.native_batch_norm", "aten._native_batch_norm"),
    "ChannelsLastTaggedReshapePass": _CHANNELS_LAST,
    "RemoveRedundantCopyPass": (*_CHANNELS_LAST, "aten._to_copy", "dim_order_ops."),
}


@contextlib.contextmanager
def lean() -> Iterator[None]:
    """Within this, lowering skips work that cannot change its result. Not for several threads at once."""
    from executorch.exir import lowered_backend_module
    from executorch.exir._serialize import _dataclass
    from executorch.exir.backend import backend_api
    from executorch.exir.program import _program
    from torch._export import utils
    from torch.fx.traceback import NodeSource

    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(skipped())
        memory = enter(remembered())
        enter(in_place(memory))
        enter(uncompiled())
        enter(_once(memory))
        enter(_needed_passes())
        enter(replaced(NodeSource, __deepcopy__=lambda self, _: self))  # records are never changed
        enter(replaced(lowered_backend_module, legalize_graph=in_order))
        enter(replaced(backend_api, **_partitioning(backend_api)))
        enter(replaced(_program, **_lowering(_program)))
        # asked for every field of every object that is written, and at every table of decompositions
        enter(replaced(_dataclass, get_type_hints=functools.cache(_dataclass.get_type_hints)))
        enter(replaced(utils, _materialize_cpp_cia_ops=functools.cache(utils._materialize_cpp_cia_ops)))
        yield


def _partitioning(api: Any) -> dict[str, Callable[..., Any]]:
    collect, duplicate = api._get_node_list_with_same_tag, api._maybe_duplicate_constant_nodes

    def tagged(graph: Any, tag: str, owner: ExportedProgram) -> Any:
        with still(owner):
            return collect(graph, tag, owner)

    def duplicated(exported: ExportedProgram, tag: str) -> None:
        # behind every copy the whole program is verified; it is again when all delegates are made
        with replaced(ExportedProgram, _validate=lambda _: None):
            duplicate(exported, tag)

    return {"_get_node_list_with_same_tag": tagged, "_maybe_duplicate_constant_nodes": duplicated}


def _lowering(module: Any) -> dict[str, Callable[..., Any]]:
    preserve, remove = module._replace_aten_ops_with_transformed_ops, module.unsafe_remove_auto_functionalized_pass

    def preserved(name: str, program: ExportedProgram, partitioner: Any) -> Any:
        with still(program):
            return preserve(name, program, partitioner)

    def removed(program: ExportedProgram) -> ExportedProgram:
        write_again(program)
        found: ExportedProgram = remove(program)  # what others made functional is traced, call by call
        return found

    return {
        "_replace_aten_ops_with_transformed_ops": preserved,
        "unsafe_remove_auto_functionalized_pass": removed,
    }


@contextlib.contextmanager
def _needed_passes() -> Iterator[None]:
    from executorch.backends.xnnpack import xnnpack_preprocess

    full = xnnpack_preprocess.XNNPACKPassManager

    class Lean(full):  # type: ignore[misc, valid-type]
        def __init__(self, exported_program: Any, passes: Any = None) -> None:
            super().__init__(exported_program, passes)
            self.passes: list[Any]
            names = {str(getattr(n.target, "__name__", n.target)) for n in exported_program.graph.nodes}
            self.passes = [p for p in self.passes if _needed(p.__name__, names)]

        def transform(self) -> ExportedProgram:
            program: ExportedProgram = self.exported_program
            for kind in self.passes:  # a program is verified before and behind every pass
                if not idle(kind, program.graph_module):
                    program = full(program, [kind]).transform()
            return program

    with replaced(xnnpack_preprocess, XNNPACKPassManager=Lean):
        yield


@contextlib.contextmanager
def _once(memory: Memory) -> Iterator[None]:
    """Within this, programs are not decomposed again, and delegates are called with the values that they had."""
    from executorch.exir import EdgeProgramManager
    from executorch.exir.delegate import executorch_call_delegate

    whole, emit = ExportedProgram.run_decompositions, EdgeProgramManager.to_executorch
    latest: list[ExportedProgram] = []  # the last one that was made functional

    def once(self: ExportedProgram, table: Any = None, *rest: Any, **named: Any) -> ExportedProgram:
        if table is not None and latest and self is latest[0] and not _holds(self, table):
            return self
        small = None if table is None or rest or named else decompose(self, table, memory)
        latest[:] = [small or whole(self, table, *rest, **named)]
        memory.learn(latest[0].graph.nodes)
        return latest[0]

    def finish(self: EdgeProgramManager, *given: Any, **named: Any) -> Any:
        for program in self._edge_programs.values():
            memory.learn(n for n in program.graph.nodes if n.target is executorch_call_delegate)
        return emit(self, *given, **named)

    with replaced(ExportedProgram, run_decompositions=once), replaced(EdgeProgramManager, to_executorch=finish):
        yield


def decomposed(exported: ExportedProgram, keep: Collection[Any]) -> ExportedProgram:
    """The program in executorch's operators and functional, in one retrace: it finds nothing left to do then.

    Args:
        exported: in the operators of ATen.
        keep: operators that a delegate takes whole.
    """
    from executorch.exir.tracer import _default_decomposition_table

    table = _default_decomposition_table()
    for operator in keep:
        table.pop(operator, None)
    return exported.run_decompositions(table)


def _holds(exported: ExportedProgram, table: Collection[Any]) -> bool:
    targets = {n.target for n in exported.graph.nodes if n.op == "call_function"}
    return any(t in table for t in targets - {torch.ops.aten.sym_size.int})  # tables list it, and nothing takes it away


def _needed(name: str, operators: set[str]) -> bool:
    only = ONLY_FOR.get(name)
    return only is None or any(o.startswith(only) for o in operators)
