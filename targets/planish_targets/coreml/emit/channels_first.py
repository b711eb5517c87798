"""The layout that the Neural Engine is said to prefer: channels first, and 1x1 convolutions for linears.

(machinelearning.apple.com/research/neural-engine-transformers: tensors (B, C, 1, S), nn.Conv2d for nn.Linear.) No
hardware has confirmed here that it pays.

A value may exist in its own layout, in a turned one, or in both; it is turned back only where something reads it that
has no turned form:

    rows    [B, S, C]     as [B, C, 1, S]
    image   [B, H, W, C]  as [B, C, H, W]
    split   [B, S, H, D]  as [B, H, D, S]   rows cut into heads
    heads   [B, H, S, D]  as [B, H, D, S]   the same, transposed: nothing moves

From the first linear of an encoder on, its linears, norms, sums, activations and attentions then move nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import fx

from planish_passes.palette import INDICES
from planish_passes.program import op_name
from planish_passes.quantise import VALUES, tables
from planish_targets.coreml.emit.emitter import OPS, Emitter, arguments, dtype_of
from planish_targets.coreml.emit.naming import Var
from planish_targets.coreml.emit.network import attention_scores, quantized_weight, stored_epsilon, table_weight
from planish_targets.coreml.emit.sizes import shape_of

# kind -> order of axes from the turned layout to the value's own
_BACK = {"rows": (0, 2, 1), "image": (0, 2, 3, 1), "split": (0, 3, 1, 2), "heads": (0, 1, 3, 2)}
_FROM_ROWS, _FROM_IMAGE = (0, 2, 1), (0, 3, 1, 2)
_LINEARS = frozenset({"aten.linear", "planish.linear_q", "planish.linear_lut"})
_SAME = "gelu relu silu sigmoid tanh erf hardtanh clamp neg add sub mul div maximum minimum"
_ALIKE = frozenset(f"aten.{name}" for name in _SAME.split())


class ChannelsFirst:
    """Emits nodes in the turned layout where they have one.

    Args:
        e: the emitter of one function.

    Attributes:
        convolutions: linears that became 1x1 convolutions.
        turns: transposes that were put in between the layouts.
    """

    def __init__(self, e: Emitter) -> None:
        self.e = e
        self.convolutions = self.turns = 0
        self._turned: dict[str, tuple[str, Var]] = {}  # name of a node -> kind, value
        self._tables = tables(e.program)
        self._forms: dict[str, Callable[[fx.Node], bool]] = {
            **dict.fromkeys(_LINEARS, self._linear),
            **dict.fromkeys(_ALIKE, self._elementwise),
            "aten.layer_norm": self._layer_norm,
            "aten.reshape": self._reshape,
            "aten.transpose": self._transpose,
            "aten.permute": self._permute,
            "planish.attention": self._attention,
        }

    def emit(self, node: fx.Node) -> bool:
        """Emit a node turned; False when it has no such form here."""
        form = self._forms.get(op_name(node))
        return form is not None and form(node)

    def back(self, node: fx.Node) -> Var | None:
        """The value of a node that exists in the turned layout only, in its own; None for other nodes."""
        if node.name not in self._turned:
            return None
        kind, var = self._turned[node.name]
        self.turns += 1
        if kind == "rows":
            var = self.e.mb.squeeze(x=var, axes=[2])
        return self.e.mb.transpose(x=var, perm=list(_BACK[kind]))

    def _has(self, argument: Any) -> str:
        """The kind of a node that exists turned; "" for all others."""
        return self._turned[argument.name][0] if isinstance(argument, fx.Node) and argument.name in self._turned else ""

    def _put(self, node: fx.Node, kind: str, var: Var) -> bool:
        own, back = shape_of(node), _BACK[kind]
        turned = tuple(own[back.index(axis)] for axis in range(len(own)))
        wanted = (*turned[:2], 1, turned[2]) if kind == "rows" else turned
        if tuple(var.shape) != wanted:
            raise self.e.refusal(node, f"with channels first it came out with shape {tuple(var.shape)}, not {wanted}")
        self._turned[node.name] = (kind, var)
        return True

    def _turn(self, node: fx.Node) -> tuple[str, Var]:
        """A value of rank 3 or 4 with its channels first, turned now if need be."""
        if node.name not in self._turned:
            rows = len(shape_of(node)) == 3
            self.turns += 0 if self.e.value(node).val is not None else 1
            var = self.e.mb.transpose(x=self.e.value(node), perm=list(_FROM_ROWS if rows else _FROM_IMAGE))
            self._turned[node.name] = ("rows", self.e.mb.expand_dims(x=var, axes=[2])) if rows else ("image", var)
        return self._turned[node.name]

    def _linear(self, node: fx.Node) -> bool:
        x = node.args[0]
        assert isinstance(x, fx.Node)
        if not self._has(x) and self.e.value(x).val is not None:
            return False  # of constants: it is computed once, now
        weight, bias = self._weight(node), arguments(node)["bias"]
        offset = None if bias is None else self.e.value(bias)
        rank = len(shape_of(x))
        turned = rank == 3 or (rank == 4 and self._has(x) == "image")
        if weight is None or not turned or (offset is not None and offset.val is None):
            return False
        kind, var = self._turn(x)
        if kind not in ("rows", "image"):
            return False
        self.convolutions += 1
        added = {} if offset is None else {"bias": offset}
        return self._put(node, kind, self.e.mb.conv(x=var, weight=weight(), pad_type="valid", name=node.name, **added))

    def _weight(self, node: fx.Node) -> Callable[[], Var] | None:
        """What makes the weight [N, K, 1, 1]; None when it must stay a matrix."""
        given, e = arguments(node), self.e
        source = given["indices"] if op_name(node) == "planish.linear_lut" else given["weight"]
        name = e.program.weight_of(source)
        plain = None if name is None else name.removesuffix(VALUES).removesuffix(INDICES)
        if plain is None or plain in self._tables:
            return None
        if op_name(node) == "aten.linear":
            return lambda: e.weights.plain(plain, kernel=True)
        if op_name(node) == "planish.linear_q":
            return None if given["activations"] != "none" else lambda: quantized_weight(e, given, kernel=True)
        return lambda: table_weight(e, given, kernel=True)

    def _layer_norm(self, node: fx.Node) -> bool:
        given, e = arguments(node), self.e
        kind = self._has(given["input"])
        if kind not in ("rows", "image") or len(given["normalized_shape"]) != 1:
            return False
        affine = {k: e.value(given[s]) for k, s in (("gamma", "weight"), ("beta", "bias")) if given[s] is not None}
        epsilon, var = stored_epsilon(e, given["eps"]), self._turn(given["input"])[1]
        return self._put(node, kind, e.mb.layer_norm(x=var, axes=[1], epsilon=epsilon, name=node.name, **affine))

    def _elementwise(self, node: fx.Node) -> bool:
        """The node's own emitter, given turned values."""
        sources = [a for a in node.args if isinstance(a, fx.Node)]
        kinds = {self._has(s) for s in sources} - {""}
        if len(kinds) != 1 or not dtype_of(node).is_floating_point:
            return False
        (kind,) = kinds
        given = {s.name: self._alike(s, node, kind) for s in sources}
        if any(v is None for v in given.values()):
            return False
        with self.e.instead(given):
            return self._put(node, kind, OPS[op_name(node)](self.e, node))

    def _alike(self, source: fx.Node, node: fx.Node, kind: str) -> Var | None:
        """A source as it broadcasts against turned values of a kind; None when it has no such form."""
        shape, whole = shape_of(source), shape_of(node)
        if self._has(source) == kind and shape == whole:
            return self._turned[source.name][1]
        if source.meta["val"].numel() == 1 and not self._has(source):
            return self.e.mb.reshape(x=self.e.value(source), shape=[1] * 4)
        if kind not in ("rows", "image") or not source.meta["val"].is_floating_point() or self._has(source):
            return None
        if shape == whole[-1:]:
            return self.e.mb.reshape(x=self.e.value(source), shape=[1, shape[0], 1, 1])
        fits = len(shape) == len(whole) and all(s in (1, w) for s, w in zip(shape, whole, strict=True))
        return self._turn(source)[1] if fits and shape[1:-1] == whole[1:-1] else None

    def _reshape(self, node: fx.Node) -> bool:
        source = node.args[0]
        if (kind := self._has(source)) not in ("rows", "split"):
            return False
        old, new = shape_of(source), shape_of(node)  # type: ignore[arg-type]
        var = self._turned[source.name][1]  # type: ignore[union-attr]
        if kind == "rows" and len(new) == 4 and new[:2] == old[:2]:
            return self._put(node, "split", self.e.sizes.reshape(var, [new[0], new[2], new[3], new[1]], name=node.name))
        if kind == "split" and len(new) == 3 and new[:2] == old[:2]:
            return self._put(node, "rows", self.e.sizes.reshape(var, [new[0], new[2], 1, new[1]], name=node.name))
        return False

    def _transpose(self, node: fx.Node) -> bool:
        source, *axes = node.args
        other = {"split": "heads", "heads": "split"}.get(self._has(source))
        if other is None or {int(a) % 4 for a in axes} != {1, 2}:  # type: ignore[arg-type]
            return False
        return self._put(node, other, self._turned[source.name][1])  # type: ignore[union-attr]

    def _permute(self, node: fx.Node) -> bool:
        """Channels last, as a linear wants them, are channels first here, and the other way round."""
        source, order = node.args[0], tuple(int(d) % 4 for d in arguments(node)["dims"])
        assert isinstance(source, fx.Node)
        if self._has(source) == "image" and order == _FROM_IMAGE:
            self.e.bind(node, self._turned[source.name][1])
            return True
        if len(order) == 4 and order == _BACK["image"] and not self._has(source):
            return self._put(node, "image", self.e.value(source))
        return False

    def _attention(self, node: fx.Node) -> bool:
        given, e = arguments(node), self.e
        q, k, v = (given[n] for n in "qkv")
        alike = shape_of(q)[1] == shape_of(k)[1] == shape_of(v)[1]
        if {self._has(n) for n in (q, k, v)} != {"heads"} or not alike:
            return False
        queries, keys, values = (self._turned[n.name][1] for n in (q, k, v))
        mask = None if given["mask"] is None else e.value(given["mask"])
        queries = e.mb.mul(x=queries, y=np.float32(given["scale"]))
        scores = e.mb.matmul(x=queries, y=keys, transpose_x=True)
        probabilities = attention_scores(e, given, scores, mask)
        return self._put(node, "split", e.mb.matmul(x=values, y=probabilities, transpose_y=True, name=node.name))


def pays(layout: ChannelsFirst) -> bool:
    """Whether a program gains more convolutions than it needs transposes between the layouts."""
    return layout.convolutions > layout.turns
