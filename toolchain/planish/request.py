"""The request: every flag of `planish compile`, and every key of planish.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, field_validator

# The longest wait that every platform's poll() takes (2**31 ms), rounded down.
_LONGEST_TIMEOUT = 1_000_000.0
Length = Annotated[int, Field(ge=1)]


class Gates(BaseModel):
    """Limits that replace the recipe's own. None = the recipe decides."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    cosine: float | None = Field(
        default=None, ge=-1, le=1, description="smallest cosine similarity to the original model"
    )
    agreement: float | None = Field(default=None, ge=0, le=1, description="smallest share of equal argmax decisions")
    divergence: float | None = Field(
        default=None, ge=0, description="largest mean KL divergence of next-token distributions, in nats"
    )
    capture: float | None = Field(default=None, gt=0, description="largest relative error of the traced float program")
    lowering: float | None = Field(
        default=None, gt=0, description="largest error of an artifact, in multiples of rounding noise"
    )
    placement: float | None = Field(default=None, ge=0, le=1, description="smallest accelerated share of operations")
    delegated: float | None = Field(
        default=None, ge=0, le=1, description="smallest accelerated share of the multiply-accumulates of weights"
    )
    tokenizer: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="smallest share of texts that the runtime's own tokenizer splits as the model's",
    )


class Request(BaseModel):
    """What to compile."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str = Field(min_length=1, description="model folder, hub id, or .gguf file")
    targets: tuple[str, ...] = Field(min_length=1, description="targets to compile for")
    recipe: str = Field(default="float", description="quantisation recipe")
    group: Literal[0, 16, 32, 64, 128] | None = Field(
        default=None, description="weights that share a scale (0 = a whole row; default: the recipe's)"
    )
    symmetric: bool | None = Field(default=None, description="no zero points (default: the recipe's choice)")
    rounding: Literal["auto", "nearest", "search", "calibrated"] = Field(
        default="auto", description="how integers are found; auto: the best that the size of the model allows"
    )
    activations: Literal["auto", "fast", "none"] = Field(
        default="auto", description="inputs of quantised weights: rounded as the target does best, fastest, or never"
    )
    bits: float | None = Field(
        default=None,
        gt=2,
        le=8,
        description="average bits of quantised weights, scales included: which of them stay at 8 bits is measured",
    )
    max_size: ByteSize | None = Field(
        default=None, gt=0, description="largest size of an artifact's files; bits are spent where they help most"
    )
    output: Path | None = Field(default=None, description="bundle to write (default: NAME-RECIPE.planish)")
    task: str | None = Field(default=None, description="task; inferred from the model when left out")
    revision: str | None = Field(default=None, description="hub revision (branch, tag or commit)")
    sequence_length: Length | tuple[Length, ...] | None = Field(
        default=None,
        description="fixed sequence length, for targets with fixed shapes; several: one artifact that takes each",
    )
    context: int | None = Field(
        default=None, ge=2, description="tokens that a language model's cache holds, where it is inside the artifact"
    )
    dynamic: bool | None = Field(
        default=None, description="keep shapes dynamic, where the target can (default: its own choice)"
    )
    minimum_ios: Literal[16, 17, 18] | None = Field(
        default=None,
        description="oldest iOS that a Core ML package opens on; 16: macOS 13, 18: macOS 15 (default: 18)",
    )
    ane: bool = Field(
        default=False,
        description="Core ML: forms that the Apple Neural Engine is said to prefer (not verified on hardware)",
    )
    trust_remote_code: bool = Field(default=False, description="run model code that the checkpoint brings along")
    logits: Literal["last", "all"] = Field(
        default="last", description="language models: logits of the last position of a call, or of all"
    )
    split_weights: bool = Field(
        default=False, description="ExecuTorch: weights in a file of their own (.ptd), beside a small program (.pte)"
    )
    verify: bool | None = Field(
        default=None, description="check every artifact (default: yes, for models of up to 2 billion weights)"
    )
    loaders: bool = Field(default=True, description="put source code into the bundle that apps open it with")
    keep_failed: bool = Field(default=False, description="write the bundle even when a gate failed")
    threads: int = Field(default=1, ge=1, le=256, description="threads of the runtimes while verifying")
    timeout: float = Field(default=600.0, gt=0, le=_LONGEST_TIMEOUT, description="seconds until a runner is stopped")
    runner: dict[str, str] = Field(default_factory=dict, description="target -> command that runs its artifact")
    gates: Gates = Field(default_factory=Gates)

    @field_validator("sequence_length")
    @classmethod
    def _ascending(cls, given: int | tuple[int, ...] | None) -> int | tuple[int, ...] | None:
        if not isinstance(given, tuple):
            return given
        lengths = tuple(sorted(set(given)))
        if not lengths:
            raise ValueError("name at least one length")
        return lengths if len(lengths) > 1 else lengths[0]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Sequence lengths that were asked for, ascending; () when none was."""
        given = self.sequence_length
        return () if given is None else given if isinstance(given, tuple) else (given,)
