"""Make executorch's lowering cheaper without changing what it writes.

Measured on MiniLM, two things take most of the time: provenance records that every retrace copies deeply, and passes of
the XNNPACK delegate that retrace every subgraph even when it holds none of the operators that they are for. A test
compares the files written with and without this, byte for byte.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

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
    from executorch.backends.xnnpack import xnnpack_preprocess
    from torch.fx.traceback import NodeSource

    full = xnnpack_preprocess.XNNPACKPassManager

    class Lean(full):  # type: ignore[misc, valid-type]
        def __init__(self, exported_program: Any, passes: Any = None) -> None:
            super().__init__(exported_program, passes)
            self.passes: list[Any]
            names = {str(getattr(n.target, "__name__", n.target)) for n in exported_program.graph.nodes}
            self.passes = [p for p in self.passes if _needed(p.__name__, names)]

    def same(self: NodeSource, memo: object) -> NodeSource:
        return self  # records are never changed after they are made

    xnnpack_preprocess.XNNPACKPassManager = Lean
    NodeSource.__deepcopy__ = same  # type: ignore[attr-defined]
    try:
        yield
    finally:
        xnnpack_preprocess.XNNPACKPassManager = full
        del NodeSource.__deepcopy__  # type: ignore[attr-defined]


def _needed(name: str, operators: set[str]) -> bool:
    only = ONLY_FOR.get(name)
    return only is None or any(o.startswith(only) for o in operators)
