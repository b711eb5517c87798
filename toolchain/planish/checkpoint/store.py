"""Checkpoint + model = WeightStore: every weight found, of the right shape, read only when needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from planish.checkpoint.blocks import Blocks
from planish.checkpoint.finite import AbsentWeightError, check_finite
from planish.checkpoint.gguf import GgufFile, GgufNamed
from planish.checkpoint.kept import Finder
from planish.checkpoint.mapped import Checkpoint
from planish.checkpoint.missing import few, is_ignored, needed_but_missing, notes_on
from planish.checkpoint.names import Conversion, NamePlan, plan_names
from planish.checkpoint.ties import representatives, same_values, tied_groups
from planish_passes.errors import PlanishError
from planish_passes.rows import Rows, cut, gathered, width_of
from planish_passes.weights import TensorSpec, WeightStore


@dataclass(frozen=True)
class Loaded:
    """The weights of a model, and what the caller should tell about them.

    Args:
        store: one lazy tensor per name in `model.state_dict()`, in its order and in the dtype of the model's weight.
        aliases: tied name to the name whose tensor it is.
        absent: names that the checkpoint lacks and the task does not need; reading one raises AbsentWeightError.
        notes: sentences for the user: weights of the checkpoint that are not used, absent weights.
        checkpoint: the source, to give memory back.
        stored: name -> its blocks in a GGUF file, or why there are none that could be kept as they are.
    """

    store: WeightStore
    aliases: Mapping[str, str]
    absent: tuple[str, ...]
    notes: tuple[str, ...]
    checkpoint: Checkpoint
    stored: Callable[[str], Blocks | str]

    def release(self, name: str) -> None:
        """Give back the file pages behind one weight."""
        for key in self.store.sources(name):
            self.checkpoint.release(key)

    def check_finite(self) -> None:
        """Refuse NaN and infinity: reads all weights once.

        Raises:
            PlanishError: naming the tensor and the index.
        """
        files = self.checkpoint.paths
        where = files[0] if len(files) == 1 else files[0].parent
        check_finite(self.store, skip=self.aliases, release=self.release, where=str(where))


def load_weights(
    model: nn.Module,
    checkpoint: Checkpoint,
    *,
    rules: list[Any] | None = None,
    where: str = "checkpoint",
    hint: str = "use a checkpoint that holds them",
    unneeded: Callable[[str], bool] = lambda name: False,
) -> Loaded:
    """Connect every name in `model.state_dict()` with the checkpoint. No data is read, but that of doubly stored ties.

    Args:
        model: an instance of the class to compile, built from its config (on the meta device).
        rules: name rules, when they are not the model's own.
        where: the folder or file, for messages.
        hint: what to do when weights are missing.
        unneeded: names that may be missing because the task does not use them.

    Raises:
        PlanishError: a weight is missing, has another shape than the config says, or cannot be converted.
    """
    plan = plan_names(model, checkpoint.keys(), rules)
    specs = {name: TensorSpec.of(tensor) for name, tensor in model.state_dict().items()}
    entries, strangers = _Connector(model, checkpoint, specs, where).connect(plan)
    aliases = _tie(entries, model, specs, where)

    missing = [name for name in specs if name not in entries]
    absent = tuple(name for name in missing if unneeded(name) or is_ignored(model, name))
    needed = [name for name in missing if name not in absent]
    for name in [name for name in needed if name.endswith("num_batches_tracked")]:
        # BatchNorm's training counter: checkpoints from before it existed mean zero, as torch itself reads them.
        entries[name] = _Entry(partial(torch.zeros, (), dtype=specs[name].dtype), ())
        needed.remove(name)
    if needed:
        raise needed_but_missing(model, needed, where, hint)
    for name in absent:
        entries[name] = _Entry(partial(_refuse, name, where), ())

    store = WeightStore()
    for name, spec in specs.items():
        store = store.with_lazy(name, spec, entries[name].read, entries[name].sources, entries[name].rows)
    notes = notes_on(model, [*plan.unexpected, *strangers], absent, plan.shadowed)
    return Loaded(store, aliases, absent, notes, checkpoint, _stored(model, checkpoint, plan, aliases))


def _stored(
    model: nn.Module, checkpoint: Checkpoint, plan: NamePlan, aliases: Mapping[str, str]
) -> Callable[[str], Blocks | str]:
    if not isinstance(checkpoint, (GgufFile, GgufNamed)):
        return lambda name: "the checkpoint is no GGUF file"
    finder = Finder(model, checkpoint, plan)
    return lambda name: finder.find(aliases.get(name, name))


@dataclass(frozen=True)
class _Entry:
    read: Callable[[], Tensor]
    sources: tuple[str, ...]
    rows: Rows | None = None


@dataclass(frozen=True)
class _Connector:
    model: nn.Module
    checkpoint: Checkpoint
    specs: Mapping[str, TensorSpec]
    where: str

    def connect(self, plan: NamePlan) -> tuple[dict[str, _Entry], list[str]]:
        """What the checkpoint holds of the model, and names that conversions yield beyond it."""
        entries = {}
        for name, key in plan.direct.items():
            self.check_shape(name, self.checkpoint.spec(key).shape, (key,))
            entries[name] = self.entry(key, self.specs[name])
        strangers = []
        for group in plan.conversions:
            for name, shape in self.shapes(group).items():
                if name not in self.specs:
                    strangers.append(name)
                    continue
                self.check_shape(name, shape, group.keys)
                entries[name] = _Entry(partial(self.convert, group, name), group.keys)
        return entries, strangers

    def entry(self, key: str, spec: TensorSpec) -> _Entry:
        whole = partial(self.read, key, spec.dtype)
        if not spec.shape or self.checkpoint.rows(key, 0, 0, spec.dtype) is None:
            return _Entry(whole, (key,))
        rows = partial(self.rows, key, spec.dtype)
        same = self.checkpoint.spec(key).dtype == spec.dtype
        return _Entry(whole if same else partial(gathered, spec, rows), (key,), rows)

    def rows(self, key: str, dtype: torch.dtype, start: int, stop: int) -> Tensor:
        found = self.checkpoint.rows(key, start, stop, dtype)
        assert found is not None
        return found

    def read(self, key: str, dtype: torch.dtype) -> Tensor:
        return self.checkpoint.read(key).to(dtype)

    def convert(self, group: Conversion, name: str) -> Tensor:
        # transformers casts before it converts, to the dtype of the group's first weight.
        dtype = self.specs[group.first].dtype
        return group.run(lambda key: self.read(key, dtype), self.model)[name]

    def shapes(self, group: Conversion) -> dict[str, tuple[int, ...]]:
        def shape_only(key: str) -> Tensor:
            return torch.empty(self.checkpoint.spec(key).shape, dtype=self.specs[group.first].dtype, device="meta")

        try:
            made = group.run(shape_only, self.model)
        except MemoryError:
            raise
        except Exception as error:  # the operations are transformers' own: they raise whatever torch raises
            raise PlanishError(
                f"{group.operations} cannot make {group.first}: {str(error).splitlines()[0]}",
                f"{self.where}: {few(group.keys)}",
                "the checkpoint does not fit this version of transformers: save it again with save_pretrained",
            ) from error
        return {name: tuple(tensor.shape) for name, tensor in made.items()}

    def check_shape(self, name: str, found: tuple[int, ...], keys: tuple[str, ...]) -> None:
        expected = self.specs[name].shape
        if tuple(found) != expected:
            raise PlanishError(
                f"The weight {name} has the shape {list(found)}; the config asks for {list(expected)}.",
                f"{self.where}: {few(keys)} in {self.checkpoint.where(keys[0])}",
                "config.json and the weights do not belong together: take both from the same place",
            )


def _tie(
    entries: dict[str, _Entry], model: nn.Module, specs: Mapping[str, TensorSpec], where: str
) -> Mapping[str, str]:
    aliases = representatives(tied_groups(model), entries)
    for name, held in aliases.items():
        if specs[name] != specs[held]:
            raise PlanishError(
                f"{name} is tied to {held}, but their shapes differ.", where, "take config.json and weights together"
            )
        if name in entries and not _same(specs[name], entries[name], entries[held]):
            raise PlanishError(
                f"The config ties {name} to {held}, but the checkpoint holds different values for them.",
                where,
                'set "tie_word_embeddings": false in config.json if they are meant to differ',
            )
        entries[name] = entries[held]
    return aliases


def _same(spec: TensorSpec, a: _Entry, b: _Entry) -> bool:
    if a.rows is None or b.rows is None:
        return same_values(a.read(), b.read())
    return all(same_values(a.rows(*span), b.rows(*span)) for span in cut(0, spec.shape[0], width_of(spec)))


def _refuse(name: str, where: str) -> Tensor:
    raise AbsentWeightError(
        f"The weight {name} is not in the checkpoint, but the compiled program uses it.",
        where,
        "use a checkpoint that holds it, or another task",
    )
