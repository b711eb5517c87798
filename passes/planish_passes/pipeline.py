"""The whole order of passes, on one page, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from planish_passes.canonicalise import Canonicalise
from planish_passes.expand import Expand
from planish_passes.expected import AssertExpected
from planish_passes.fold import FoldConstants
from planish_passes.fuse_attention import FuseAttention
from planish_passes.fuse_batch_norm import FuseBatchNorm
from planish_passes.fuse_cache import FuseCache
from planish_passes.fuse_gated import FuseGated
from planish_passes.fuse_gelu import FuseGelu
from planish_passes.fuse_linear import FuseLinear
from planish_passes.fuse_rms_norm import FuseRmsNorm
from planish_passes.fuse_rope import FuseRope
from planish_passes.infra import Pass
from planish_passes.last_token import LastToken
from planish_passes.numerics import RoundActivations, RoundEpsilons, RoundWeights
from planish_passes.pack_linears import PackLinears
from planish_passes.palette import PaletteFormat
from planish_passes.palettise import Palettise
from planish_passes.quantise import Quantise, Rounder
from planish_passes.ranges import AnnotateRanges, Range
from planish_passes.resident import Resident
from planish_passes.specialise import Specialise
from planish_passes.weights import WeightFormat


def fuse() -> tuple[Pass, ...]:
    """From the captured program to the float program that everything is compared with."""
    return (
        Canonicalise(),  # first: patterns below must not have to look through no-ops
        FuseLinear(),  # before anything else counts on finding linears
        FuseGelu(),  # before constants are folded into its factors
        FuseBatchNorm(),  # before weights are rounded for a target: a fold behind it would round twice
        FuseRmsNorm(),
        FuseRope(),  # positions become tables here; what computed angles is dead then
        FuseGated(),
        FuseCache(),  # before plain attention is looked for: it has none of the hook's operators
        FuseAttention(),  # only models that bypass the attention interface have something to find
        Canonicalise(),  # the transpose that fusion adds cancels against the model's own
        FoldConstants(),  # tables and buffers that depend on nothing
        AssertExpected(),  # before quantisation: a lost layer must not be reported as "nothing to quantise"
    )


def quantise(
    format: WeightFormat | None,
    formats: Mapping[str, WeightFormat] | None = None,
    rounder: Rounder | None = None,
) -> tuple[Pass, ...]:
    """From the float program to the one that every target starts from; arguments as of `Quantise`.

    With None for the format, weights stay floating point.
    """
    if format is None:
        return ()
    return (
        Quantise(format, formats or {}, rounder),  # after fusion, so that weights are seen where they are used
        AssertExpected(),  # quantised forms count as what they replace
    )


def palettise(formats: Mapping[str, PaletteFormat]) -> tuple[Pass, ...]:
    """Before quantisation, which takes what this leaves: these linears as indices into tables."""
    return (Palettise(formats),)


def keep(formats: Mapping[str, WeightFormat], reasons: Mapping[str, str]) -> tuple[Pass, ...]:
    """For weights whose integers the store has already; the others stay floating point, for these reasons."""
    return (Quantise(None, formats, reasons=reasons), AssertExpected())


def yardstick(weights: torch.dtype, activations: str, epsilons: torch.dtype = torch.float32) -> tuple[Pass, ...]:
    """A target's numerics, written into the shared program; the result is what the artifact is compared with."""
    order: list[Pass] = []
    if activations != "none":
        order.append(RoundActivations(activations))
    if epsilons != torch.float32:
        order.append(RoundEpsilons(epsilons))  # whole composites still have theirs as an argument
    if weights != torch.float32:
        order.append(RoundWeights(weights))  # last: quantised integers are not floating point and stay
    return tuple(order)


def annotate(ranges: Mapping[str, Range]) -> tuple[Pass, ...]:
    """Behind the yardstick, whose own names the ranges have: what a narrow number format must know."""
    return (AnnotateRanges(ranges),)


def packed() -> tuple[Pass, ...]:
    """For targets whose kernels gain from one wide product in the place of several narrow ones."""
    return (PackLinears(),)


def resident(context: int, sizes: Mapping[str, int] | None = None) -> tuple[Pass, ...]:
    """For targets that keep caches inside, in buffers of this many tokens; other dynamic dimensions get `sizes`."""
    return (Resident(context, sizes or {}),)


def last_token() -> tuple[Pass, ...]:
    """From a yardstick that answers at every position to the one that an artifact without the others is held to."""
    return (LastToken(),)


def for_target(keeps: frozenset[str], sizes: Mapping[str, int] | None) -> tuple[Pass, ...]:
    """From the yardstick to the form that a target lowers.

    Args:
        keeps: composites that the target encodes itself.
        sizes: fixed sizes of the dynamic dimensions; None leaves them symbolic.
    """
    order: list[Pass] = []
    if sizes is not None:
        order += [
            Specialise(sizes),
            Canonicalise(),  # slices and expands that became no-ops
        ]
    order += [
        Expand(keeps),
        Canonicalise(),  # bodies end in contiguous and may cast
        FoldConstants(),  # with known sizes, position tables and masks of ones fold
    ]
    return tuple(order)
