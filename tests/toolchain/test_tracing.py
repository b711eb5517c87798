"""What is left out while tracing changes no program, and comes back afterwards."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from decoders import DECODERS
from support import random_model, store_of
from torch.fx import GraphModule, _lazy_graph_module
from torch.fx.experimental import proxy_tensor
from transformers import AutoModelForCausalLM

from planish import capture as capturing
from planish.capture import Captured, capture
from planish.tasks import TASKS
from planish.tracing import quick_tracing


@contextmanager
def plainly() -> Iterator[None]:
    """Nothing is left out."""
    yield


def captured() -> Captured:
    config = DECODERS["llama"]()
    model = random_model(config, AutoModelForCausalLM)
    return capture(AutoModelForCausalLM, config, TASKS["text-generation"], store_of(model))


def test_the_program_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = captured().program
    monkeypatch.setattr(capturing, "quick_tracing", plainly)
    plain = captured().program
    assert quick.text() == plain.text()
    for a, b in zip(quick.graph.nodes, plain.graph.nodes, strict=True):
        assert a.meta.get("stack_trace") == b.meta.get("stack_trace")  # what names the line of a failure
        if isinstance(b.meta.get("val"), torch.Tensor):
            assert str(a.meta["val"].stride()) == str(b.meta["val"].stride())


def test_less_code_is_written_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    recompile = GraphModule.recompile
    monkeypatch.setattr(GraphModule, "recompile", lambda m: (written.append(len(m.graph.nodes)), recompile(m))[1])
    captured()
    quick = sum(written)
    written.clear()
    monkeypatch.setattr(capturing, "quick_tracing", plainly)
    captured()
    assert quick < sum(written) / 2


def test_everything_comes_back() -> None:
    known = proxy_tensor._extract_tensor_metadata
    with pytest.raises(KeyError, match="some"):
        _fail()
    assert proxy_tensor._extract_tensor_metadata is known
    assert gc.isenabled()
    assert not _lazy_graph_module._use_lazy_graph_module_flag


def _fail() -> None:
    with quick_tracing():
        assert not gc.isenabled()
        assert _lazy_graph_module._use_lazy_graph_module_flag
        raise KeyError("some")


def test_who_collects_no_garbage_goes_on_so() -> None:
    gc.disable()
    try:
        with quick_tracing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
