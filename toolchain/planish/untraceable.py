"""What to say when a model's own code stops while it is probed or traced."""

from __future__ import annotations

import traceback
from pathlib import Path

from planish_passes.errors import PlanishError

# The first part that occurs in "type: message" decides.
_KINDS = (
    (
        ("data-dependent", "DataDependent", ".item()", "unbacked"),
        "its forward decides by values that exist only at run time; one fixed graph cannot follow that",
    ),
    (
        ("Constraints violated", "ConstraintViolation", "Specializations unexpectedly required"),
        "its forward is written for fixed lengths; one graph cannot serve prompts and single tokens",
    ),
)
_OTHER = "try a newer transformers; if its own exporter fails too, the architecture is not traceable"


def untraceable(name: str, problem: BaseException) -> PlanishError:
    """The error for a model class that cannot be traced; names the cause and the line of the model's code."""
    cause = first_line(problem)
    text = f"{type(problem).__name__}: {problem}"
    hint = next((h for parts, h in _KINDS if any(p in text for p in parts)), _OTHER)
    return PlanishError(f"{name} cannot be traced: {cause}", place(problem) or "torch.export", hint)


def first_line(problem: BaseException | None) -> str:
    """Type and first line of an exception."""
    text = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {text[0] if text else ''}"


def place(problem: BaseException) -> str | None:
    """The innermost line in code of the model; None when no code of a model is on the way."""
    frames = [f for f in traceback.extract_tb(problem.__traceback__) if Path(f.filename).name.startswith("modeling_")]
    frames = [f for f in frames if f.name not in ("wrapper", "forward_with_checkpointing")]
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}, in {frames[-1].name}" if frames else None
