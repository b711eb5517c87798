"""Models without weights: every parameter has a shape and no value, every buffer outside the checkpoint its own."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from planish import hooks
from planish_passes.errors import PlanishError

# Experts as gathered matrices and one batched product: the form of transformers that torch.export can trace.
_EXPERTS = "batched_mm"


def build_without_weights(model_class: Any, config: Any, attention: str) -> nn.Module:
    """The model with fake parameters on cpu; buffers that no checkpoint holds have their real values.

    Fake, not meta: what a forward makes on the way (indices, masks, slopes) is real then and can be kept.

    Raises:
        KeyError, ValueError: the class does not know this attention implementation.
        PlanishError: a buffer is in no checkpoint and is not rebuilt.
    """
    hooks.register()
    build = getattr(model_class, "from_config", None) or model_class._from_config
    with torch.device("meta"):
        model = build(copy.deepcopy(config), attn_implementation=attention, experts_implementation=_EXPERTS)
    model = model.to(torch.float32).eval()
    for module in model.modules():
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):
            module.warn_if_padding_and_no_attention_mask = _say_nothing  # it reads token ids, which have no values here
    _rebuild_buffers(model)
    _fake_weights(model)
    return model  # type: ignore[no-any-return]


def fake_mode(model: nn.Module) -> FakeTensorMode:
    """What the parameters of the model live in: a call inside of it computes shapes only."""
    found: FakeTensorMode = next(p.fake_mode for p in model.parameters() if hasattr(p, "fake_mode"))
    return found


def _say_nothing(*_: Any) -> None:
    return None


def _rebuild_buffers(model: nn.Module) -> None:
    # Non-persistent buffers have no value on meta; transformers' own initialiser computes them again.
    kept = set(model.state_dict())
    for path, module in model.named_modules():
        lost = [b for b, t in module._buffers.items() if t is not None and f"{path}.{b}".lstrip(".") not in kept]
        for name in lost:
            old = module._buffers[name]
            assert old is not None
            module._buffers[name] = torch.full_like(old, 0, device="cpu").fill_(_poison(old.dtype))
        if not lost:
            continue
        with torch.no_grad():
            model._init_weights(module)  # type: ignore[operator]
        for name in lost:
            value = module._buffers[name]
            if value is not None and value.numel() and bool((value == _poison(value.dtype)).all()):
                raise PlanishError(
                    f"buffer {path}.{name} is in no checkpoint and the model class does not rebuild it",
                    type(model).__name__,
                    "its values are lost without running the model's constructor; report the model class",
                )


def _poison(dtype: torch.dtype) -> float | int | bool:
    if dtype == torch.bool:
        return True
    return 1.7014e38 if dtype.is_floating_point else 113


def _fake_weights(model: nn.Module) -> None:
    shapes = ShapeEnv(tracked_fakes=[], prefer_deferred_runtime_asserts_over_guards=True, trace_asserts=True)
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=shapes, export=True)
    made: dict[int, Tensor] = {}  # tied weights stay one

    def fake(old: Tensor) -> Tensor:
        if id(old) not in made:
            with mode:
                new = torch.empty(old.shape, dtype=old.dtype)
            made[id(old)] = nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new
        return made[id(old)]

    originals = [*model.parameters(), *model.buffers()]  # held, so that no id is used twice
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, value in held.items():
                if value is not None and value.is_meta:
                    held[name] = fake(value)  # type: ignore[assignment]
    del originals
