"""Small programs and small random models for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from transformers import AutoModel

from planish.capture import Captured, capture
from planish.requirements import requirements
from planish.tasks import TASKS
from planish.tasks.image import ImageTask
from planish_passes.program import Port, Program
from planish_passes.weights import TensorSpec, WeightFormat, WeightStore
from planish_targets import registry
from planish_targets.contract import NeedsMore, Target

_TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_VOCABULARY = {**_TEXT, "vocab_size": 100}
_DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16, "share_att_key": True}
_ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}

FAMILIES: Mapping[str, Callable[[], Any]] = {
    "bert": lambda: tf.BertConfig(**_VOCABULARY),
    "roberta": lambda: tf.RobertaConfig(**_VOCABULARY),
    "distilbert": lambda: tf.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, vocab_size=100),
    "albert": lambda: tf.AlbertConfig(embedding_size=16, **_VOCABULARY),
    "electra": lambda: tf.ElectraConfig(embedding_size=16, **_VOCABULARY),
    "mpnet": lambda: tf.MPNetConfig(**_VOCABULARY),
    "deberta-v2": lambda: tf.DebertaV2Config(norm_rel_ebd="layer_norm", **_DEBERTA, **_VOCABULARY),
    "modernbert": lambda: tf.ModernBertConfig(local_attention=8, **_ENDS, **_VOCABULARY),
    "vit": lambda: tf.ViTConfig(image_size=32, patch_size=8, **_TEXT),
    "convnext": lambda: tf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=32),
    "mobilenet-v2": lambda: tf.MobileNetV2Config(image_size=32, depth_multiplier=0.25),
    "swin": lambda: tf.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4
    ),
}


def target_names(*, variants: bool = False) -> list[Any]:
    """All targets, as parameters of a test. Those that are compiled for on request alone are skipped where their
    packages are not installed; of the others, a missing package is a failure.

    Args:
        variants: with those that can be lowered here: what needs an SDK is tested where the SDK is.
    """
    found = registry.known() if variants else registry.targets()
    return [
        pytest.param(name, marks=pytest.mark.skipif(bool(lacking := _lacking(target)), reason=lacking))
        for name, target in found.items()
        if not (isinstance(target, NeedsMore) and target.missing())
    ]


def _lacking(target: Target) -> str:
    absent = [r.package for r in requirements(target) if r.installed is None]
    return f"needs {', '.join(absent)}" if absent and not target.capabilities.default else ""


def random_model(config: Any, model_class: Any = AutoModel, seed: int = 0) -> nn.Module:
    """A model with random weights that are all different from their initial zeros and ones."""
    torch.manual_seed(seed)
    model: nn.Module = model_class.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.05
    return model


def store_of(model: nn.Module) -> Callable[[nn.Module], WeightStore]:
    """What `Source.weights` does, for weights that are in memory."""
    state = model.state_dict()

    def weights(meta: nn.Module) -> WeightStore:
        store = WeightStore()
        for name, value in meta.state_dict(keep_vars=True).items():
            store = store.with_lazy(name, TensorSpec.of(value), lambda name=name: state[name], (name,))
        return store

    return weights


@cache
def capture_family(family: str) -> tuple[Captured, nn.Module]:
    """Captured program and eager model of a family."""
    config = FAMILIES[family]()
    model = random_model(config)
    image = hasattr(config, "num_channels")
    task = ImageTask("image-features", ("last_hidden_state",)) if image else TASKS["feature-extraction"]
    return capture(AutoModel, config, task, store_of(model)), model


def feed(program: Program, *, batch: int = 2, sequence: int = 16, padding: int = 5) -> dict[str, Tensor]:
    """Random inputs; the last row of a batch is padded."""
    torch.manual_seed(1)
    given: dict[str, Tensor] = {}
    for port in program.inputs:
        if port.dtype.is_floating_point:
            given[port.name] = torch.randn(batch, *(int(s) for s in port.shape[1:]))
        elif port.name == "attention_mask":
            given[port.name] = torch.ones(batch, sequence, dtype=torch.int64)
            given[port.name][-1, sequence - padding :] = 0
        else:
            high = 100 if port.name == "input_ids" else 2
            given[port.name] = torch.randint(2 if high > 2 else 0, high, (batch, sequence))
    return given


def program_of(module: nn.Module, *examples: Tensor, dynamic: Any = None) -> Program:
    """A program from any small module: inputs x0, x1, ...; weights are its parameters and buffers."""
    from torch.export.graph_signature import InputKind

    exported = torch.export.export(module.eval(), examples, dynamic_shapes=dynamic, strict=False)
    store = WeightStore()
    state = {**dict(module.named_parameters()), **dict(module.named_buffers()), **exported.constants}
    bound = {}
    for spec in exported.graph_signature.input_specs:
        if spec.target is None:
            continue
        value = state[spec.target].detach()
        store = store.with_lazy(spec.target, TensorSpec.of(value), lambda v=value: v, (spec.target,))
        bound[spec.target] = next(n.meta["val"] for n in exported.graph.nodes if n.name == spec.arg.name)
        spec.kind, spec.persistent = InputKind.BUFFER, True
    exported._state_dict, exported._constants = bound, {}
    inputs = tuple(Port(f"x{i}", x.dtype, tuple(x.shape)) for i, x in enumerate(examples))
    returned = exported.graph.output_node().args[0]
    outputs = tuple(Port(f"y{i}", n.meta["val"].dtype, tuple(n.meta["val"].shape)) for i, n in enumerate(returned))
    return Program("test", exported, store, inputs, outputs)


def symmetric_scales(weight: Tensor, format: WeightFormat) -> Tensor:
    """Scale per row and group so that the largest magnitude maps to the largest integer.

    Scales are rounded up to values that every target can store.

    Args:
        weight: float [N, K].

    Returns:
        float32 [N, G], positive.
    """
    rows, columns = weight.shape
    grouped = weight.to(torch.float32).view(rows, -1, format.group or columns)
    stored = torch.bfloat16 if format.group else torch.float16  # of groups, XNNPACK stores bfloat16
    return rounded_up(grouped.abs().amax(dim=-1) / format.range[1], stored)


def rounded_up(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """The next value of a type that is not smaller, at least float16's smallest normal one; as float32."""
    half = exact.to(dtype)
    up = torch.nextafter(half, torch.full_like(half, float("inf")))
    scales = torch.where(half.to(torch.float32) < exact, up, half).to(torch.float32)
    return scales.clamp(min=2.0**-14)  # runtimes flush what lies below


def symmetric_values(weight: Tensor, scales: Tensor, format: WeightFormat) -> Tensor:
    """Round to nearest (ties to even): int8 [N, K]."""
    rows, _ = weight.shape
    low, high = format.range
    grouped = weight.to(torch.float32).view(rows, scales.shape[1], -1)
    return torch.round(grouped / scales[..., None]).clamp(low, high).to(torch.int8).view(weight.shape)
