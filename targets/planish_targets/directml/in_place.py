"""Decoders whose caches are written in place: past and present in one buffer, as DirectML's attention needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from planish_passes.errors import PlanishError
from planish_targets.onnx_graph.session import TAP, arrays_of
from planish_targets.serve import Call, Model


def in_place(session: Any, call: Call, device: str) -> Model:
    """A function from named inputs to named outputs that binds each present to the buffer of its past.

    Args:
        session: an open InferenceSession.
        call: its options hold `shared_buffers` [[past, present], ...] (tokens are axis 2 of both) and `new_tokens`
            [input, axis].
        device: where the buffers live, in ONNX Runtime's word ("dml", "cpu").
    """
    options: Mapping[str, Any] = call.options
    tokens, axis = options["new_tokens"]
    presents = dict(options["shared_buffers"])

    def model(feed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        import onnxruntime

        given = arrays_of(session, call, feed)
        new = int(feed[tokens].shape[axis])
        _demand_one_prompt(new, {past: given[past].shape[2] for past in presents}, call)
        binding, buffers, alive = session.io_binding(), {}, []
        for name, array in given.items():
            if name not in presents:
                binding.bind_cpu_input(name, array)
                continue
            alive.append(_longer(array, new))  # on the CPU the value is a view of it
            value = onnxruntime.OrtValue.ortvalue_from_numpy(alive[-1], device, 0)
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(presents[name], value)
            buffers[presents[name]] = value
        others = [o.name for o in session.get_outputs() if o.name not in buffers]
        for name in others:
            binding.bind_output(name, "cpu")
        session.run_with_iobinding(binding)
        results = dict(zip((*buffers, *others), binding.get_outputs(), strict=True))
        return {n.removeprefix(TAP): torch.from_numpy(v.numpy().copy()) for n, v in results.items()}

    return model


def _longer(past: Any, new: int) -> Any:
    import numpy as np

    batch, heads, length, width = past.shape
    buffer = np.zeros((batch, heads, length + new, width), past.dtype)
    buffer[:, :, :length] = past
    return buffer


def _demand_one_prompt(new: int, pasts: Mapping[str, int], call: Call) -> None:
    filled = next((name for name, length in pasts.items() if length), None)
    if new > 1 and filled is not None and call.options.get("prompt_in_one_call"):
        raise PlanishError(
            f"{new} new tokens behind a cache of {pasts[filled]}",
            f"{call.path.name}, input {filled!r}",
            "DirectML's attention takes the past as empty then: give the prompt in one call, then token by token",
        )
