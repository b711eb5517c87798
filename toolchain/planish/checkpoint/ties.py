"""Weights that share their values: which name speaks for which others."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn


def tied_groups(model: nn.Module) -> list[tuple[str, ...]]:
    """Names in `model.state_dict()` that are one weight, the one that transformers treats as the source first.

    Taken from the model's own declaration (`all_tied_weights_keys`) and from parameters that are one object.
    """
    names = list(model.state_dict(keep_vars=True).items())
    head = {name: name for name, _ in names}

    def root(name: str) -> str:
        while head[name] != name:
            name = head[name]
        return name

    for target, source in declared_ties(model).items():
        if target in head and source in head and root(target) != root(source):
            head[root(target)] = root(source)
    first: dict[int, str] = {}
    for name, tensor in names:
        other = first.setdefault(id(tensor), name)
        if root(name) != root(other):
            head[root(name)] = root(other)

    groups: dict[str, list[str]] = {}
    for name, _ in names:
        groups.setdefault(root(name), [root(name)])
        if name != root(name):
            groups[root(name)].append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def declared_ties(model: nn.Module) -> dict[str, str]:
    """Target to source, as the class and its config declare; empty for a plain module."""
    known = getattr(model, "all_tied_weights_keys", None)
    if known is not None:
        return dict(known)
    expand: Callable[..., dict[str, str]] | None = getattr(model, "get_expanded_tied_weights_keys", None)
    return {} if expand is None else expand(all_submodels=True)


def representatives(groups: Collection[tuple[str, ...]], present: Collection[str]) -> dict[str, str]:
    """Alias to the first name of its group that the checkpoint holds; a group that it lacks wholly is left out."""
    aliases = {}
    for group in groups:
        held = next((name for name in group if name in present), None)
        if held is not None:
            aliases.update({name: held for name in group if name != held})
    return aliases


def same_values(a: Tensor, b: Tensor) -> bool:
    """Equal shape, dtype and bits (so that NaN equals NaN), or equal values."""
    if a.shape != b.shape:
        return False
    if a.dtype != b.dtype:
        return torch.equal(a.to(torch.float32), b.to(torch.float32))
    as_bytes = torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
    return as_bytes or torch.equal(a, b)
