"""Inputs and outputs of an artifact, as far as a compile knows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from planish.bundle.manifest import TensorEntry
from planish.compiled import TargetResult

Shape = tuple[int | str, ...]


def inputs(result: TargetResult) -> tuple[TensorEntry, ...]:
    """Names and shapes as declared; dtypes as in the golden inputs ("?" when there are none)."""
    names = list(result.shapes) or list(dict.fromkeys(n for case in result.golden_inputs.values() for n in case))
    made = []
    for name in names:
        seen = [case[name] for case in result.golden_inputs.values() if name in case]
        shape = result.shapes[name] if name in result.shapes else _shape([tuple(t.shape) for t in seen], {})
        made.append(TensorEntry(name=name, dtype=_dtype(seen), shape=tuple(shape)))
    return tuple(made)


def outputs(result: TargetResult) -> tuple[TensorEntry, ...]:
    """As observed in the golden outputs.

    A dimension that varies over the cases gets the name of the axis that varies with it. One that never varied is a
    number, unless an axis had that value in every case, too: then it is "?", because both readings are possible.
    """
    axes = _axes(result)
    made = []
    for name in dict.fromkeys(n for case in result.golden_outputs.values() for n in case):
        seen = {c: t[name] for c, t in result.golden_outputs.items() if name in t}
        values = {axis: [sizes.get(c) for c in seen] for axis, sizes in axes.items()}
        shape = _shape([tuple(t.shape) for t in seen.values()], values)
        made.append(TensorEntry(name=name, dtype=_dtype(list(seen.values())), shape=shape))
    return tuple(made)


def _dtype(tensors: Sequence[Tensor]) -> str:
    names = {str(t.dtype).removeprefix("torch.") for t in tensors}
    return names.pop() if len(names) == 1 else "?"


def _axes(result: TargetResult) -> dict[str, dict[str, int]]:
    """Axis -> case -> its size there, from the golden inputs."""
    sizes: dict[str, dict[str, int]] = {}
    for case, tensors in result.golden_inputs.items():
        for name, shape in result.shapes.items():
            if name in tensors and len(shape) == tensors[name].dim():
                for axis, size in zip(shape, tensors[name].shape, strict=True):
                    if isinstance(axis, str):
                        sizes.setdefault(axis, {})[case] = int(size)
    return sizes


def _shape(seen: list[tuple[int, ...]], axes: Mapping[str, list[int | None]]) -> Shape:
    ranks = {len(s) for s in seen}
    if len(ranks) != 1:
        return ()
    return tuple(_dimension([s[i] for s in seen], axes) for i in range(ranks.pop()))


def _dimension(sizes: list[int], axes: Mapping[str, list[int | None]]) -> int | str:
    fitting = [axis for axis, values in axes.items() if values == sizes]
    if len(set(sizes)) == 1:
        return "?" if fitting else sizes[0]
    return fitting[0] if len(fitting) == 1 else "?"
