"""coremltools, loaded when needed and kept quiet."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from planish_passes.errors import PlanishError

HALF_MAX = 65504.0  # the largest fp16 number
NARROW = "planish::narrow_to_fp16"
SHARE = "planish::share_constants"


@dataclass(frozen=True)
class Sdk:
    """The parts of coremltools that lowering uses.

    Args:
        ct: the package.
        mb: builder of MIL operations.
        mil: module with Program and Function.
        types: MIL element types.
        torch_ops: coremltools' own converters of torch operators.
        torch_nodes: module with the node form that those converters take.
        torch_context: module with the name table that those converters read and write.
        version: the oldest version of iOS that packages are for (`ct.target`).
    """

    ct: Any
    mb: Any
    mil: Any
    types: Any
    torch_ops: Any
    torch_nodes: Any
    torch_context: Any
    version: Any


def load(ios: int = 18) -> Sdk:
    """Import coremltools (a few seconds, once).

    Args:
        ios: the oldest version that packages are for.

    Raises:
        PlanishError: it is not installed.
    """
    kit = _load()
    return replace(kit, version=getattr(kit.ct.target, f"iOS{ios}"))


@cache
def _load() -> Sdk:
    base = "coremltools.converters.mil"
    try:
        with quiet(every_logger=True):  # it imports torchao, which reports each kernel library that it lacks
            ct = importlib.import_module("coremltools")
            mil = importlib.import_module(f"{base}.mil")
            torch_ops = importlib.import_module(f"{base}.frontend.torch.ops")
            setattr(torch_ops, "_tqdm", _without_bar)  # noqa: B010
            torch_nodes = importlib.import_module(f"{base}.frontend.torch.internal_graph")
            torch_context = importlib.import_module(f"{base}.frontend.torch.converter")
            setattr(importlib.import_module(f"{base}.mil.passes.pass_pipeline"), "tqdm", _without_bar)  # noqa: B010
            registry = importlib.import_module(f"{base}.mil.passes.pass_registry")
            _register_narrow(registry, importlib.import_module(f"{base}.mil.passes.defs.quantization"))
            _register_share(registry, importlib.import_module(f"{base}.mil.passes.graph_pass"))
    except ModuleNotFoundError as problem:
        raise PlanishError(
            f"{problem.name} is not installed", "the Core ML target", "pip install 'planish[coreml]'"
        ) from problem
    return Sdk(ct, mil.Builder, mil, mil.types, torch_ops, torch_nodes, torch_context, ct.target.iOS18)


def _register_narrow(registry: Any, quantization: Any) -> None:
    class narrow_to_fp16(quantization.FP16ComputePrecision):  # its name is the name of the pass
        """coremltools' fp16 pass with a cheaper search for constants beyond fp16.

        Its own search builds index arrays of 24 bytes for each element of a table.
        Option `wide`: names of operations that stay fp32.
        """

        wide: frozenset[str] = frozenset()

        def is_valid_op(self, op: Any) -> bool:
            return op.name not in self.wide and bool(super().is_valid_op(op))

        @staticmethod
        def fp16_overflow(op: Any) -> bool:
            return any(_beyond_fp16(var) for given in op.inputs.values() for var in _listed(given))

    registry.register_pass(namespace="planish")(narrow_to_fp16)


def _register_share(registry: Any, graph_pass: Any) -> None:
    class share_constants(graph_pass.AbstractGraphPass):  # its name is the name of the pass
        """Constants of equal bytes, in one function or in several, are one record of the weight file.

        coremltools' own search (`const_deduplication`) compares with a tolerance, and takes one of two names away.
        """

        def apply(self, program: Any) -> None:
            for function in program.functions.values():
                for op in function.operations:
                    if op.op_type == "const" and isinstance(op.outputs[0].val, np.ndarray):
                        op.weight_id = _identity(op.outputs[0])

    registry.register_pass(namespace="planish")(share_constants)


def _identity(var: Any) -> str:
    digest = hashlib.sha256(f"{var.dtype} {var.shape} ".encode())
    digest.update(np.ascontiguousarray(var.val).data.cast("B") if var.val.size else b"")
    return digest.hexdigest()


def _listed(given: Any) -> Any:
    return given if isinstance(given, (list, tuple)) else (given,)


def _beyond_fp16(var: Any) -> bool:
    # Infinities may become fp16 infinities; finite numbers must not.
    if var.op is None or var.op.op_type != "const" or not var.is_tensor_or_scalar_of(dtype="fp32"):
        return False
    values = np.asarray(var.op.val.val)
    if not values.size or (values.max() <= HALF_MAX and values.min() >= -HALF_MAX):
        return False
    sizes = np.abs(values)
    return bool(((sizes > HALF_MAX) & (sizes < 1e38)).any())


@contextlib.contextmanager
def quiet(every_logger: bool = False) -> Iterator[None]:
    """Hold back warnings and coremltools' log lines below ERROR; on request those of all loggers.

    The process's own stdout and stderr stay as they are: the caller may be drawing its progress there.
    """
    logger, root = logging.getLogger("coremltools"), logging.root.manager
    level, disabled = logger.level, root.disable
    logger.setLevel(logging.ERROR)
    if every_logger:
        logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        logging.disable(disabled)


def _without_bar(items: Iterable[Any], **_: Any) -> Iterable[Any]:
    return items
