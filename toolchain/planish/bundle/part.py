"""What all parts of a manifest share: strict models, paths inside a bundle, numbers that JSON can hold."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints


class Part(BaseModel):
    """Immutable; unknown keys and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _inside(path: str) -> str:
    # The pattern already forbids absolute paths, drives and backslashes.
    if {".", ".."} & set(path.split("/")):
        raise ValueError("must not lead out of the bundle")
    return path


BundlePath = Annotated[
    str,
    StringConstraints(pattern=r"^[^/\\:\u0000-\u001f]+(/[^/\\:\u0000-\u001f]+)*$", max_length=1024),
    AfterValidator(_inside),
    Field(description="path inside the bundle, with forward slashes"),
]
_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
TargetName = Annotated[str, StringConstraints(pattern=rf"^{_NAME}(:{_NAME})?(/{_NAME})?$", max_length=200)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]

# JSON has no NaN and no infinities, and a metric may well be one.
Number = FiniteFloat | Literal["NaN", "Infinity", "-Infinity"]


def encode(value: float) -> Number:
    """The number as JSON can hold it."""
    value = float(value)
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def decode(value: Number) -> float:
    """The inverse of `encode`."""
    return float(value)
