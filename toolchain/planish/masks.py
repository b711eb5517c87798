"""What a mask function of transformers lets a token see, found by asking it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

# Queries are asked about all keys up to themselves; windows and chunks beyond this are taken for "all".
_FARTHEST = 1 << 17


@dataclass(frozen=True)
class Causal:
    """Tokens see themselves and what came before: the last `window` of them (0 = all), within `chunk` (0 = off)."""

    window: int = 0
    chunk: int = 0

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        """bool, of broadcast positions."""
        keep = key <= query
        if self.window:
            keep = keep & (key > query - self.window)
        if self.chunk:
            keep = keep & (key // self.chunk == query // self.chunk)
        return keep


def understand(function: Callable[..., Any]) -> Causal | None:
    """The causal mask that a mask function (batch, head, query, key) -> bool describes; None when it is another one.

    The function is asked, not read: what it answers for whole rows of keys decides, so that any spelling of a sliding
    window is understood and anything else (padding, packed sequences, bidirectional blocks) is not.
    """
    with _disable_current_modes(), torch.no_grad():
        try:
            function = _unpadded(function)
            seen = [_row(function, q) for q in (_FARTHEST, _FARTHEST - 1)]
            widths = [int(r.sum()) for r in seen]
            if widths[0] == _FARTHEST + 1:
                found = Causal()
            elif widths[0] == widths[1]:
                found = Causal(window=widths[0])
            else:
                found = Causal(chunk=_first_border(function))
            return found if all(_agree(function, found, q) for q in _queries(found)) else None
        except (_Unknown, RuntimeError, TypeError, IndexError, NotImplementedError):
            return None


def _unpadded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function where the number of padding tokens on the left, which only a padding mask can raise, is zero.

    Chunks are counted from the first real token, by a tensor that has no value while tracing.
    """
    names, cells = function.__code__.co_freevars, function.__closure__ or ()
    if not cells:
        return function
    held = [_unpadded_value(n, c.cell_contents) for n, c in zip(names, cells, strict=True)]
    closure = tuple(CellType(v) for v in held)
    return FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, closure)


def _unpadded_value(name: str, value: Any) -> Any:
    if name == "left_padding" and isinstance(value, Tensor):
        return torch.zeros(1, dtype=torch.int64)
    if isinstance(value, Tensor) and (isinstance(value, FakeTensor) or value.is_meta):
        raise _Unknown
    if isinstance(value, (list, tuple)):
        return type(value)(_unpadded_value("", v) for v in value)
    return _unpadded(value) if isinstance(value, FunctionType) else value


class _Unknown(Exception):
    """What the function answers depends on values that exist only while tracing."""


def _queries(found: Causal) -> list[int]:
    near = found.window or found.chunk or 7
    return sorted({0, 1, near - 1, near, near + 1, 2 * near, 1000, 4097, _FARTHEST})


def _first_border(function: Callable[..., Any]) -> int:
    """The first token that does not see the one before it; 0 = none."""
    queries, zero = torch.arange(1, _FARTHEST), torch.zeros((), dtype=torch.int64)
    blind = (~function(zero, zero, queries, queries - 1)).nonzero()
    return int(queries[blind[0]]) if len(blind) else 0


def _row(function: Callable[..., Any], query: int) -> Tensor:
    keys = torch.arange(query + 3)  # two keys of the future as well
    zero = torch.zeros((), dtype=torch.int64)
    answer = function(zero, zero, torch.full_like(keys, query), keys)
    if not isinstance(answer, Tensor) or answer.dtype != torch.bool:
        raise TypeError("a mask function answers with booleans")
    return answer.expand(keys.shape)


def _agree(function: Callable[..., Any], found: Causal, query: int) -> bool:
    keys = torch.arange(query + 3)
    return bool((_row(function, query) == found.allows(torch.full_like(keys, query), keys)).all())
