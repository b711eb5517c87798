"""Less memory while executorch lowers: weights without copies, int4 packed in blocks, free memory given back."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.export import ExportedProgram

from planish_passes.memory import give_back_memory
from planish_targets.executorch.replaced import replaced
from planish_targets.executorch.weights import packed

_BLOCK = 1 << 20  # integers


@contextlib.contextmanager
def frugal() -> Iterator[None]:
    """Within this, weights for XNNPACK are copied once, when they are packed. Not for several threads.

    executorch copies the programs of all delegates before it lowers the first, because lowering may change graphs; it
    copies their weights, too, which it only reads. Of a node that is not lowered it notes the reason in variables of
    its modules, and what it found out about nodes in a cache; with the nodes, these hold the whole program.
    """
    from executorch.backends.xnnpack.operators.node_visitor import NodeVisitor
    from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend
    from executorch.exir.backend.utils import WhyNoPartition, is_same_node

    at_once, preprocess = NodeVisitor.convert_to_qc4w, XnnpackBackend.preprocess

    def one(*given: object) -> object:
        try:
            return preprocess(*given)
        finally:
            give_back_memory()

    def same_weights(program: ExportedProgram, _: object) -> ExportedProgram:
        shared = (*program.state_dict.values(), *program.constants.values())
        return copy.deepcopy(program, {id(t): t for t in shared if isinstance(t, Tensor)})

    lowering = {"copy_exported_program_for_preprocess": staticmethod(same_weights), "preprocess": staticmethod(one)}
    packing = staticmethod(lambda weight: in_blocks(weight, at_once))
    try:
        with (
            replaced(XnnpackBackend, **lowering),
            replaced(NodeVisitor, convert_to_qc4w=packing),
            replaced(WhyNoPartition, __call__=lambda *_, **__: None),
        ):
            yield
    finally:
        is_same_node.cache_clear()


def in_blocks(weight: Tensor, otherwise: Callable[[Tensor], Tensor]) -> Tensor:
    """int8 [N, K] in -8..7 as uint8 [N, K / 2].

    Args:
        otherwise: does what is not of this kind, and says what is wrong.
    """
    plain = weight.dtype == torch.int8 and weight.dim() == 2 and weight.shape[1] % 2 == 0 and weight.numel()
    if not plain or int(weight.min()) < -8 or int(weight.max()) > 7:
        return otherwise(weight)
    rows, columns = weight.shape
    found = torch.empty((rows, columns // 2), dtype=torch.uint8)
    step = max(1, _BLOCK // columns)
    for start in range(0, rows, step):
        found[start : start + step] = packed(weight[start : start + step])
    return found
