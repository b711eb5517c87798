"""The spellings of a rotation of channel pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from planish_passes.match import is_op, other, shape_of, sole

_END = 1 << 62  # slices to the end are written with a huge number


@dataclass(frozen=True)
class Rotation:
    """Of x by cos and sin; `paired` when these hold one value per pair of channels, not one per channel."""

    x: fx.Node
    cos: fx.Node
    sin: fx.Node
    interleaved: bool
    paired: bool


def rotation(node: fx.Node) -> Rotation | None:
    """The rotation that ends in this node, or None."""
    if is_op(node, "aten.add") and not node.kwargs:
        return _added(node)
    if is_op(node, "aten.cat") and len(node.args[0]) == 2 and _last_axis(node):  # type: ignore[arg-type]
        return _joined(*node.args[0])  # type: ignore[misc]
    return None


def _added(add: fx.Node) -> Rotation | None:
    a, b = add.args[:2]
    if not (is_op(a, "aten.mul") and is_op(b, "aten.mul")):
        return None
    for plain, turned in ((a, b), (b, a)):
        for rotated in turned.args:  # type: ignore[union-attr]
            found = _rotated(rotated)
            if found is None or found[0] not in plain.args:  # type: ignore[union-attr]
                continue
            x, interleaved = found
            cos, sin = other(plain, x), other(turned, rotated)  # type: ignore[arg-type]
            if isinstance(cos, fx.Node) and isinstance(sin, fx.Node):
                return Rotation(x, cos, sin, interleaved, paired=False)
    return None


def _joined(first: Any, second: Any) -> Rotation | None:
    """cat(a * cos - b * sin, b * cos + a * sin)."""
    if not (is_op(first, "aten.sub") and is_op(second, "aten.add")) or first.kwargs or second.kwargs:
        return None
    (ac, bs), sums = first.args, second.args
    if not all(is_op(p, "aten.mul") for p in (ac, bs, *sums)):
        return None
    for a in ac.args:
        cos = other(ac, a)
        for b in bs.args:
            sin = other(bs, b)
            x = _two_halves(a, b)
            if x is not None and {_factors(p) for p in sums} == {frozenset((b, cos)), frozenset((a, sin))}:
                return Rotation(x, cos, sin, interleaved=False, paired=True)
    return None


def _factors(product: fx.Node) -> frozenset[Any]:
    return frozenset(product.args)


def _two_halves(a: Any, b: Any) -> fx.Node | None:
    """x, when a and b are its halves."""
    lower, upper = _slice(a), _slice(b)
    if lower is None or upper is None or lower[0] is not upper[0]:
        return None
    width = shape_of(lower[0])[-1]
    fits = lower[1:] == (0, width // 2, 1) and upper[1:] == (width // 2, width, 1) and width % 2 == 0
    return lower[0] if fits else None


def _rotated(node: Any) -> tuple[fx.Node, bool] | None:
    if is_op(node, "aten.cat") and len(node.args[0]) == 2 and _last_axis(node):
        return _halves(*node.args[0])
    while is_op(node, "aten.flatten", "aten.reshape"):
        node = node.args[0]
    if is_op(node, "aten.stack") and len(node.args[0]) == 2 and _last_axis(node):
        return _neighbours(*node.args[0])
    return None


def _last_axis(node: fx.Node) -> bool:
    axis = node.args[1] if len(node.args) > 1 else 0
    return axis in (-1, node.meta["val"].dim() - 1)


def _halves(first: Any, second: Any) -> tuple[fx.Node, bool] | None:
    x = _two_halves(second, _negated(first))
    return None if x is None else (x, False)


def _neighbours(first: Any, second: Any) -> tuple[fx.Node, bool] | None:
    odd, even = _slice(_negated(first)), _slice(second)
    if odd is None or even is None or odd[0] is not even[0]:
        return None
    width = shape_of(odd[0])[-1]
    return (odd[0], True) if odd[1:] == (1, width, 2) and even[1:] == (0, width, 2) else None


def _negated(node: Any) -> Any:
    return node.args[0] if is_op(node, "aten.neg") else None


def _slice(node: Any) -> tuple[fx.Node, int, int, int] | None:
    """(source, start, end, step) of a slice, or of a part of a split, of the last axis."""
    if is_op(node, "getitem"):
        return _part(node.args[0], node.args[1])
    if not is_op(node, "aten.slice") or not isinstance(node.args[0], fx.Node):
        return None
    given: tuple[Any, ...] = (*node.args, *(None, 0, None, _END, 1)[len(node.args) :])
    source, axis, start, end, step = given
    width = shape_of(source)[-1]
    if axis not in (-1, len(shape_of(source)) - 1) or not all(isinstance(v, int) for v in (start, end, step, width)):
        return None
    return source, start % width if start < 0 else start, min(end, width) if end >= 0 else end % width, step


def _part(split: Any, index: int) -> tuple[fx.Node, int, int, int] | None:
    if not is_op(split, "aten.split", "aten.chunk", "aten.split_with_sizes", "aten.tensor_split"):
        return None
    source, axis = split.args[0], split.args[2] if len(split.args) > 2 else split.kwargs.get("dim", 0)
    widths = [v.shape[-1] for v in split.meta["val"]]
    if axis not in (-1, len(shape_of(source)) - 1) or not all(isinstance(w, int) for w in widths):
        return None
    start = sum(widths[:index])
    return source, start, start + widths[index], 1


def widest(x: fx.Node, add: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The whole head and the node that yields all of it, when only its first channels are rotated."""
    part, cat = _slice(x), sole(add)
    if part is None or part[1] != 0 or part[3] != 1 or not is_op(cat, "aten.cat") or not _last_axis(cat):
        return x, add
    pieces = cat.args[0]
    rest = _slice(pieces[1]) if len(pieces) == 2 and pieces[0] is add else None
    if rest is None or rest[0] is not part[0] or rest[1:] != (part[2], shape_of(part[0])[-1], 1):
        return x, add
    return part[0], cat
