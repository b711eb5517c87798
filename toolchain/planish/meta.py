"""Models without weights: built on the meta device, and programs brought back from there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from planish import hooks
from planish_passes.errors import PlanishError


def build_on_meta(model_class: Any, config: Any, attention: str) -> nn.Module:
    """The model without weights; buffers that no checkpoint holds have their real values.

    Raises:
        KeyError, ValueError: the class does not know this attention implementation.
    """
    hooks.register()
    with torch.device("meta"):
        build = getattr(model_class, "from_config", None)
        model = (
            build(config, attn_implementation=attention)
            if build
            else model_class._from_config(config, attn_implementation=attention)
        )
    model = model.to(torch.float32).eval()
    _rebuild_buffers(model)
    return model


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


def to_cpu(exported: ExportedProgram) -> ExportedProgram:
    """Rewrite every device from meta to cpu, in values and arguments."""

    def move(value: Any) -> Any:
        if isinstance(value, Tensor) and value.device.type == "meta":
            with value.fake_mode:
                return value.to("cpu")
        return value

    modules = [m for m in exported.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    for module in modules:
        for node in module.graph.nodes:
            if "val" in node.meta:
                node.meta["val"] = torch.fx.node.map_aggregate(node.meta["val"], move)
            node.args = torch.fx.node.map_aggregate(node.args, _cpu_device)
            node.kwargs = torch.fx.node.map_aggregate(node.kwargs, _cpu_device)
        module.recompile()
    return exported


def _cpu_device(value: Any) -> Any:
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == "meta" else value
