"""The constants of a function: weights as they are, and integers or tables behind operations that decompress them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import fx

from planish_passes.program import Program
from planish_targets.coreml.emit.naming import Naming, Var
from planish_targets.coreml.sdk import HALF_MAX, Sdk

Array: TypeAlias = np.ndarray[Any, Any]

_KERNEL = ".kernel"  # behind the names of weights of 1x1 convolutions


class Constants:
    """Weights, each a constant on first use.

    Args:
        program: whose weights they are.
        mb: builder.
        sdk: coremltools.
        arrays: weights that were read already, by name; functions of one package share it.
        shared: names of the weights that all these functions have.
        note: takes a message for the artifact's notes.

    Attributes:
        quantized: MIL name of a decompressed weight -> weight name.
    """

    def __init__(
        self,
        program: Program,
        mb: Naming,
        sdk: Sdk,
        *,
        arrays: dict[str, Array],
        shared: frozenset[str],
        note: Callable[[str], None],
    ) -> None:
        self.quantized: dict[str, str] = {}
        self._program = program
        self._mb = mb
        self._sdk = sdk
        self._arrays = arrays
        self._shared = shared
        self._note = note
        self._names = program.weight_names()
        self._made: dict[str, Var] = {}

    def name(self, argument: fx.Node) -> str | None:
        """Name of the weight that a node stands for; None for other nodes."""
        return self._names.get(argument.name)

    def plain(self, name: str, kernel: bool = False) -> Var:
        """A weight as an fp32, int32 or bool constant (int8 stays int8).

        Args:
            kernel: [N, K, 1, 1], as 1x1 convolutions want it.
        """
        key = name + _KERNEL * kernel
        if key not in self._made:
            self._made[key] = self._mb.const(val=_spatial(self._array(name, self._numpy), kernel), name=key)
        return self._made[key]

    def decompressed(
        self, name: str, values: str, scales: str, zeros: str | None, bits: int, kernel: bool = False
    ) -> Var:
        """A quantised weight: integers and fp16-exact scales behind a constexpr operation.

        Args:
            name: weight name, without suffix.
            values: name of the integers [N, K].
            scales: name of the scales [N, G]; G divides K.
            zeros: name of the zero points [N, G]; None = symmetric.
            bits: width of the integers: 4 or 8.
            kernel: [N, K, 1, 1], as 1x1 convolutions want it.
        """
        key = name + _KERNEL * kernel
        if key not in self._made:
            given = {
                "data": self._array(values, lambda t, _: self._integers(t, bits)),
                "scale": self._array(scales, lambda t, _: t.to(torch.float32).numpy()),
            }
            if zeros is not None:
                given["offset"] = self._array(zeros, lambda t, _: self._integers(t, bits))
            self._made[key] = self._blockwise(key, **{k: _spatial(a, kernel) for k, a in given.items()})
            self.quantized[key] = name
        return self._made[key]

    def _blockwise(self, name: str, data: Array, scale: Array, offset: Array | None = None) -> Var:
        if self._sdk.version >= self._sdk.ct.target.iOS18:
            zeros = {} if offset is None else {"offset": offset}
            return self._mb.constexpr_blockwise_shift_scale(data=data, scale=scale, **zeros, name=name)
        # before: one scale per output channel (see versions.demand)
        zero = np.int8(0) if offset is None else offset.reshape(-1)
        return self._mb.constexpr_affine_dequantize(
            quantized_data=data, zero_point=zero, scale=scale.reshape(-1), axis=np.int32(0), name=name
        )

    def looked_up(self, name: str, indices: str, tables: str, kernel: bool = False) -> Var:
        """A weight as tables and indices into them, behind a constexpr operation.

        Args:
            name: weight name, without suffix.
            indices: name of the indices [N, K].
            tables: name of the tables [G, E]; G divides N, E is 2, 4, 16, 64 or 256.
            kernel: [N, K, 1, 1], as 1x1 convolutions want it.
        """
        key = name + _KERNEL * kernel
        if key not in self._made:
            found = self._array(tables, lambda t, _: t.to(torch.float32).numpy())
            bits = int(found.shape[1]).bit_length() - 1
            element = getattr(self._sdk.types, f"np_uint{bits}_dtype") if bits < 8 else np.uint8
            groups, entries = found.shape
            self._made[key] = self._mb.constexpr_lut_to_dense(
                indices=_spatial(self._array(indices, lambda t, _: t.numpy().astype(element)), kernel),
                lut=found.reshape(groups, *(1, 1, 1)[: 3 if kernel else 1], entries, 1),
                name=key,
            )
            self.quantized[key] = name
        return self._made[key]

    def _integers(self, tensor: torch.Tensor, bits: int) -> Array:
        if bits not in (4, 8):
            raise ValueError(f"blockwise weights have 4 or 8 bits, not {bits}")
        # numpy has no 4-bit type: coremltools marks int8 arrays, and packs them when it writes
        return tensor.numpy().astype(self._sdk.types.np_int4_dtype) if bits == 4 else tensor.numpy()

    def _array(self, name: str, convert: Callable[[torch.Tensor, str], Array]) -> Array:
        if name not in self._shared:  # a constant that this function alone has; another's may have the same name
            return convert(self._program.weights.read(name), name)
        if name not in self._arrays:
            self._arrays[name] = convert(self._program.weights.read(name), name)
        return self._arrays[name]

    def _numpy(self, tensor: torch.Tensor, name: str) -> Array:
        if tensor.is_floating_point():
            return tensor.to(torch.float32).clamp(-HALF_MAX, HALF_MAX).numpy()
        if tensor.dtype == torch.int64:
            low, high = torch.iinfo(torch.int32).min, torch.iinfo(torch.int32).max
            if tensor.numel() and (int(tensor.min()) < low or int(tensor.max()) > high):
                self._note(f"{name} holds integers beyond int32; they are stored as the nearest int32")
            return tensor.clamp(low, high).to(torch.int32).contiguous().numpy()
        return tensor.contiguous().numpy()


def _spatial(matrix: Array, kernel: bool) -> Array:
    return matrix[:, :, None, None] if kernel else matrix
