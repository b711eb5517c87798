"""Which checkpoint keys become which model weights: transformers' own rules, applied to names alone.

Mirrors transformers.core_model_loading.convert_and_load_state_dict_in_model, which maps and loads in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)


@dataclass(frozen=True)
class Conversion:
    """Several checkpoint keys that become one or more weights through transformers' conversion operations.

    Args:
        first: the model key that names the group.
        converter: the rule, holding no tensors.
        collected: (source pattern of the rule, checkpoint key), in the order that the operations expect.
    """

    first: str
    converter: WeightConverter
    collected: tuple[tuple[str, str], ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The checkpoint keys that go in."""
        return tuple(key for _, key in self.collected)

    @property
    def operations(self) -> str:
        """The operations, for messages."""
        return ", ".join(type(op).__name__ for op in self.converter.operations)

    def run(self, read: Callable[[str], Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Model key to tensor. With meta tensors it yields the shapes without reading anything."""
        worker = deepcopy(self.converter)
        for pattern, key in self.collected:
            # transformers takes a function here just as well as a running read.
            worker.add_tensor(self.first, key, pattern, partial(read, key))  # type: ignore[arg-type]
        made: dict[str, Any] = worker.convert(self.first, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


@dataclass(frozen=True)
class NamePlan:
    """Where each model weight comes from.

    Args:
        direct: model key to checkpoint key (possibly renamed, nothing else).
        conversions: groups that need computing.
        unexpected: checkpoint keys that no model weight takes, as the rules would have named them.
        shadowed: checkpoint keys whose place another key already took.
    """

    direct: Mapping[str, str]
    conversions: tuple[Conversion, ...]
    unexpected: tuple[str, ...]
    shadowed: tuple[str, ...]


def plan_names(model: nn.Module, keys: Iterable[str], mapping: list[Any] | None = None) -> NamePlan:
    """Map checkpoint keys to the weights of a model.

    Args:
        model: an instance of a transformers class; the meta device is enough.
        keys: the names in the checkpoint.
        mapping: the rules, when they are not the model's own (GGUF has its own).
    """
    rules = get_model_conversion_mapping(model) if mapping is None else mapping  # type: ignore[arg-type]
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    wanted = model.state_dict()
    prefix = str(getattr(model, "base_model_prefix", ""))

    direct: dict[str, str] = {}
    groups: dict[str, tuple[WeightConverter, list[tuple[str, str]]]] = {}
    unexpected, shadowed = [], []
    for key in sorted(keys, key=dot_natural_key):  # the order decides how experts are stacked
        name, pattern = rename_source_key(key, renamings, converters, prefix, wanted)
        if name not in wanted and key in wanted:
            name, pattern = rename_source_key(key, [], [], prefix, wanted)
        if name not in wanted:
            unexpected.append(name)
        elif pattern is not None and name not in direct:
            groups.setdefault(name, (deepcopy(by_pattern[pattern]), []))[1].append((pattern, key))
        elif name in direct or name in groups:
            shadowed.append(key)
        else:
            direct[name] = key
    conversions = tuple(Conversion(name, rule, tuple(found)) for name, (rule, found) in groups.items())
    return NamePlan(direct, conversions, tuple(unexpected), tuple(shadowed))
