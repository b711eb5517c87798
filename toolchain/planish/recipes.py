"""Recipes: what is quantised, how, and what quality they promise."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from planish_passes.errors import PlanishError
from planish_passes.palette import PaletteFormat
from planish_passes.weights import WeightFormat
from planish_targets.contract import Recipe


@dataclass(frozen=True)
class RecipeSpec:
    """A recipe.

    Args:
        name: what users write after --recipe.
        summary: one line for --help.
        format: format of quantised weights of encoders; None = none are quantised.
        decoder: the same of language models.
        cosine: smallest cosine similarity to the original model that passes (the quality gate).
        agreement: smallest share of equal argmax decisions that passes, for tasks that decide (0..1).
        divergence: largest mean KL divergence of next-token distributions that passes, in nats.
        token_agreement: smallest share of equal most probable next tokens that passes (0..1).
        keeps: weights stay as the checkpoint has quantised them.
        exact: `divergence` for kernels that do not round activations; None = the same.
        bits: average bits of an encoder's weights, scales included, unless the request says otherwise; those that
            rounding hurts most have 8. With palettes: of the weights that have one; those have two bits more.
        palette: of linears that read no table of an embedding; those tables have `format`. None = integers everywhere.
    """

    name: str
    summary: str
    format: WeightFormat | None
    decoder: WeightFormat | None
    cosine: float
    agreement: float
    divergence: float
    token_agreement: float
    keeps: bool = False
    exact: float | None = None
    bits: float | None = None
    palette: PaletteFormat | None = None

    def weights(self, metric: str) -> WeightFormat | None:
        """Format of quantised weights of a task with this metric (`Task.metric`)."""
        return self.decoder if metric == "tokens" else self.format

    @property
    def for_target(self) -> Recipe:
        """The part of the recipe that targets see."""
        return Recipe(self.name, self.format.bits if self.format else 0)


RECIPES: Mapping[str, RecipeSpec] = {
    r.name: r
    for r in (
        RecipeSpec("float", "no quantisation; float16 where the target wants it", None, None, 0.9999, 0.99, 1e-3, 0.98),
        RecipeSpec(
            "int8",
            "8-bit weights, one scale per output channel (language models: per 32 weights); linears, embeddings",
            WeightFormat(8),
            WeightFormat(8, 32),
            0.99,
            0.9,
            0.02,
            0.9,
        ),
        RecipeSpec(
            "int4",
            "4-bit weights in groups of 64 with zero points (encoders: 8 bits where 4 hurt most); linears, embeddings",
            WeightFormat(4, 32, symmetric=False),
            WeightFormat(4, 64, symmetric=False),
            0.9,
            0.5,
            0.6,
            0.5,
            bits=6.3,
        ),
        RecipeSpec(
            "lut4",
            "4-bit palettes, calibrated: 16 values per 16 channels (encoders: 64 where 16 hurt most); 8-bit embeddings",
            WeightFormat(8),
            WeightFormat(8, 32),
            0.97,
            0.5,
            0.6,
            0.5,
            bits=5.0,
            palette=PaletteFormat(4, 16),
        ),
        RecipeSpec(
            "keep",
            "a GGUF file's own Q4_0, Q4_1 and Q8_0 blocks, bit for bit; other types stay float",
            None,
            None,
            0.99,
            0.9,
            0.02,
            0.9,
            keeps=True,
            exact=1e-4,
        ),
    )
}


def find_recipe(name: str) -> RecipeSpec:
    """The recipe of that name.

    Raises:
        PlanishError: no such recipe; suggests the nearest.
    """
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise PlanishError(f"unknown recipe {name!r}", "--recipe", f"{hint}known recipes: {', '.join(RECIPES)}")
