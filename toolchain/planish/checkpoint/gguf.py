"""GGUF files: tensors stay in their quantised blocks on disk and are unpacked one by one.

Names and layout changes follow transformers: conversion rules for the architectures that have them
(transformers.integrations.gguf), name map and tensor processors for the others (modeling_gguf_pytorch_utils).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from planish.checkpoint.blocks import FORMATS, dequantised
from planish.checkpoint.gguf_reader import quick_gguf
from planish.checkpoint.mapped import MappedFile
from planish.checkpoint.safetensors import AGAIN
from planish_passes.errors import PlanishError
from planish_passes.rows import gathered
from planish_passes.weights import TensorSpec


class GgufFile:
    """The tensors of one file under their GGUF names, each read as float32.

    Raises:
        PlanishError: not a GGUF file, truncated, or a tensor of a type that cannot be unpacked.
    """

    def __init__(self, path: Path) -> None:
        from transformers.integrations.gguf.reader import GgufHeader

        self._file = MappedFile.open(path)
        self.paths = (path,)
        try:
            self.header = GgufHeader.from_file(str(path))
        except (ValueError, struct.error, UnicodeDecodeError, MemoryError) as error:
            raise PlanishError(f"The GGUF header is not readable: {error}.", str(path), AGAIN) from error
        self._infos = {info.name: info for info in self.header.tensors}
        self._check()

    def keys(self) -> Iterable[str]:
        """GGUF names in file order."""
        return self._infos.keys()

    def spec(self, key: str) -> TensorSpec:
        """Shape in torch's order, float32."""
        return TensorSpec(tuple(self._infos[key].shape), torch.float32)

    def read(self, key: str) -> Tensor:
        """Unpack one tensor to float32, in blocks."""
        return gathered(self.spec(key), partial(self.rows, key, dtype=torch.float32))

    def rows(self, key: str, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Unpack rows [start, stop), and cast."""
        info = self._infos[key]
        begin, end = self._range(key)
        step = (end - begin) // info.shape[0]
        span = begin + start * step, begin + stop * step
        shape = (stop - start, *info.shape[1:])
        if start == stop:
            return torch.empty(shape, dtype=dtype)
        unpacked = self._unpack(key, *span, shape)
        # What is stored as float32 is still a view of the file, which must not be written to.
        own = unpacked if unpacked.flags.writeable else np.array(unpacked)
        found = torch.from_numpy(own).to(dtype)
        self._file.release(*span)
        return found

    def values(self, key: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The unpacked values as a numpy array (a read-only view of the file when they are stored as float32)."""
        return self._unpack(key, *self._range(key), tuple(self._infos[key].shape))

    def _unpack(self, key: str, begin: int, end: int, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

        kind = GGMLQuantizationType(self._infos[key].ggml_type)
        block, size = GGML_QUANT_SIZES[kind]
        stored = (*shape[:-1], shape[-1] // block * size)
        if kind.name in FORMATS and len(shape) == 2:
            raw = self._file.view(begin, end, TensorSpec(stored, torch.uint8))
            return dequantised(raw, kind.name).numpy()
        blocks = np.frombuffer(self._file.pages, dtype=np.uint8, count=end - begin, offset=begin)
        return dequantize(blocks.reshape(stored), kind).reshape(shape)

    def kind(self, name: str) -> str:
        """ggml's name of the type that a tensor is stored as: "Q4_0", "F16", ..."""
        from gguf import GGMLQuantizationType

        return GGMLQuantizationType(self._infos[name].ggml_type).name

    def raw(self, name: str, rows: Tensor) -> Tensor:
        """The bytes of some rows, by number: uint8 [n, bytes of a row], in memory of its own."""
        begin, end = self._range(name)
        stored = np.frombuffer(self._file.pages, dtype=np.uint8, count=end - begin, offset=begin)
        found = torch.from_numpy(stored.reshape(self._infos[name].shape[0], -1)[rows.numpy()])
        step = (end - begin) // self._infos[name].shape[0]
        if len(rows):
            self._file.release(begin + int(rows.min()) * step, begin + (int(rows.max()) + 1) * step)
        return found

    def parts(self, key: str) -> tuple[str, ...]:
        """GGUF names of what a key is made of."""
        return (key,)

    def is_as_stored(self, key: str) -> bool:
        """True: one tensor of the file, unchanged."""
        return True

    def arrange(self, key: str, values: Sequence[Tensor]) -> Tensor:
        """What `read` does to the tensors of `parts`: nothing."""
        return values[0]

    def where(self, key: str) -> str:
        """The name of the file."""
        return self.paths[0].name

    def release(self, key: str) -> None:
        """Give the pages of one tensor back."""
        self._file.release(*self._range(key))

    def _range(self, key: str) -> tuple[int, int]:
        info = self._infos[key]
        begin = self.header.data_start + info.offset
        return begin, begin + info.nbytes

    def _check(self) -> None:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        path, last = self.paths[0], max((self._range(key)[1] for key in self._infos), default=0)
        for key, info in self._infos.items():
            kind = GGMLQuantizationType(info.ggml_type)
            block = GGML_QUANT_SIZES[kind][0]
            if not info.shape or info.shape[-1] % block:
                fault = f"rows of {list(info.shape)} do not divide into {kind.name} blocks of {block}"
                raise PlanishError(f"The tensor {key} is damaged: {fault}.", str(path), AGAIN)
            if self._range(key)[1] > len(self._file):
                missing = last - len(self._file)
                raise PlanishError(
                    f"The file is truncated: {missing} of {last} bytes are missing, from the tensor {key} on.",
                    str(path),
                    AGAIN,
                )


@dataclass(frozen=True)
class GgufNamed:
    """The tensors of a GGUF file under transformers' names and in transformers' layout (permutes undone)."""

    file: GgufFile
    processor: Any
    name_map: dict[str, str]  # GGUF name to transformers name, as transformers' processors want it
    groups: dict[str, tuple[str, ...]]  # transformers name to the GGUF tensors that it is made of

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file."""
        return self.file.paths

    def keys(self) -> Iterable[str]:
        """transformers names."""
        return self.groups.keys()

    def spec(self, key: str) -> TensorSpec:
        """Found by running the layout change on zeros that take no memory."""
        zeros = [np.broadcast_to(np.float32(0), self.file.spec(name).shape) for name in self.groups[key]]
        with np.errstate(all="ignore"):
            return TensorSpec.of(self._process(key, zeros))

    def read(self, key: str) -> Tensor:
        """Unpack and bring into transformers' layout, float32, in memory of its own; the pages are given back."""
        if self.is_as_stored(key):
            return self.file.read(self.groups[key][0])
        made = self._process(key, (self.file.values(name) for name in self.groups[key]))
        self.release(key)
        return made

    def rows(self, key: str, start: int, stop: int, dtype: torch.dtype) -> Tensor | None:
        """Rows of a tensor that is stored as transformers wants it; None for one that is rearranged."""
        return self.file.rows(self.groups[key][0], start, stop, dtype) if self.is_as_stored(key) else None

    def parts(self, key: str) -> tuple[str, ...]:
        """GGUF names of what a key is made of."""
        return self.groups[key]

    def arrange(self, key: str, values: Sequence[Tensor]) -> Tensor:
        """What `read` does to the tensors of `parts`; any numbers may be given for them."""
        return values[0] if self.is_as_stored(key) else self._process(key, (v.numpy() for v in values))

    def where(self, key: str) -> str:
        """The name of the file."""
        return self.file.where(key)

    def release(self, key: str) -> None:
        """Give the pages back."""
        for name in self.groups[key]:
            self.file.release(name)

    def is_as_stored(self, key: str) -> bool:
        """True: one tensor of the file, unchanged."""
        name = self.groups[key][0]
        if len(self.groups[key]) > 1:
            return False
        probe = np.broadcast_to(np.float32(0), self.file.spec(name).shape)
        parsed: dict[str, dict[str, Tensor]] = {"tensors": {}}
        with np.errstate(all="ignore"):
            done = self.processor.process(
                weights=probe, name=name, tensor_key_mapping=self.name_map, parsed_parameters=parsed
            )
        return done.weights is probe and done.name == name

    def _process(self, key: str, values: Iterable[np.ndarray[Any, Any]]) -> Tensor:
        # Processors that merge tensors (experts) put the result here themselves and return no name.
        parsed: dict[str, dict[str, Tensor]] = {"tensors": {}}
        for name, value in zip(self.groups[key], values, strict=True):
            done = self.processor.process(
                weights=value, name=name, tensor_key_mapping=self.name_map, parsed_parameters=parsed
            )
            if done.name is not None:
                # A processor may hand back its input: a view of the file, which must not be written to.
                parsed["tensors"][self.name_map[done.name]] = torch.from_numpy(np.array(done.weights))
        return parsed["tensors"][key]


def name_tensors(file: GgufFile, model: nn.Module) -> tuple[GgufFile | GgufNamed, list[Any] | None]:
    """A GGUF file as a checkpoint for one model, and the name rules to use (None: the model's own).

    Raises:
        PlanishError: transformers has no mapping for this architecture.
    """
    from transformers.integrations.gguf.utils import get_gguf_conversion_mapping, is_gguf_arch_supported
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    architecture = file.header.architecture
    if is_gguf_arch_supported(architecture):
        return file, get_gguf_conversion_mapping(architecture, model.config)
    config: Any = model.config
    make: Any = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
    processor = make(config=config.to_dict())
    try:
        with quick_gguf():
            name_map = get_gguf_hf_weights_map(model, processor)
    except (NotImplementedError, AttributeError) as error:
        raise PlanishError(
            f"The GGUF architecture {architecture} is not known to transformers: {error}.",
            str(file.paths[0]),
            "use the original model (folder or hub id) instead",
        ) from error
    groups: dict[str, tuple[str, ...]] = {}
    stored = file.keys()
    for name in stored:
        target = name_map.get(name) or name_map.get(name.removesuffix(".weight"))
        # A tensor that the model does not take keeps its GGUF name and is reported as unused.
        groups[target or name] = (*groups.get(target or name, ()), name)
    return GgufNamed(file, processor, name_map, groups), None
