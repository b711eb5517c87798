"""What torch.export does on the way and nobody asks for, left out: a quarter of its time."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.fx import _lazy_graph_module
from torch.fx.experimental import proxy_tensor


@contextmanager
def quick_tracing() -> Iterator[None]:
    """While torch.export traces; the program is the same.

    Graphs that are made on the way get their Python code when somebody calls them, and nobody does. Memory formats of
    values (`tensor_meta`, which torch fills "best effort; prefer val") are not worked out from symbols. Objects of
    graphs live long: looking for garbage among them is in vain.
    """
    known: Any = proxy_tensor._extract_tensor_metadata
    collecting = gc.isenabled()
    proxy_tensor._extract_tensor_metadata = functools.partial(known, include_contiguity=False)
    gc.disable()
    try:
        with _lazy_graph_module._use_lazy_graph_module(True):
            yield
    finally:
        proxy_tensor._extract_tensor_metadata = known
        if collecting:
            gc.enable()
