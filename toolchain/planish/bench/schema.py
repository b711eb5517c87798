"""The form of a measurement; `python -m planish.bench.schema` makes docs/bench.schema.json from it.

Values are seconds or bytes, never rates alone: a rate stands beside the time that it comes from, and both must agree.
What a device cannot tell is the words "not measured", never a missing key.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, StringConstraints, ValidationError

from planish.bundle.part import Count, Part, Sha256
from planish_passes.errors import PlanishError
from planish_targets.contract import Evidence

FORMAT: Literal["planish-bench"] = "planish-bench"
VERSION: Literal[1] = 1
NOT_MEASURED = "not measured"
LARGEST = 64 << 20  # bytes of a file
Text = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Id = Annotated[str, StringConstraints(pattern=r"^[A-Z]{1,2}$")]
Seconds = Annotated[FiniteFloat, Field(gt=0)]
Unit = Literal["s", "bytes"]
Measure = Literal[
    "load_cold", "load_warm", "first_token", "first_token_cold", "prefill", "decode", "token", "latency",
    "peak_memory", "artifact_memory",
]  # fmt: skip
UNITS: dict[str, Unit] = {"peak_memory": "bytes", "artifact_memory": "bytes"}  # all others are times
MEASURES: dict[str, str] = {
    "load_cold": "open the artifact, its files not in the page cache",
    "load_warm": "open the artifact, its files read before",
    "first_token_cold": "prompt to first token, the first time after opening",
    "first_token": "prompt to first token",
    "prefill": "compute a prompt",
    "decode": "write a text, token by token, all steps",
    "token": "one step of it",
    "latency": "one call",
    "peak_memory": "largest resident size of the process",
    "artifact_memory": "the part of it that came since the artifact was opened",
}


class Tool(Part):
    """What measured."""

    name: Text = Field(description="planish, or the app that measured")
    version: Text


class Environment(Part):
    """The machine. Where something is not known it says "not measured"."""

    device: Text = Field(description='for people: "Pixel 8", "Linux x86_64, 2 cores"; no name of a machine or person')
    system: Text = Field(description="operating system and its version")
    processor: Text
    cores: Count | None = Field(description="logical processors that may be used; null = not measured")
    memory_bytes: Count | None = Field(description="null = not measured")
    thermal: Text = Field(description='temperatures or throttling before and after, or "not measured"')
    energy: Text = Field(description='or "not measured"')
    power: Text = Field(description='"mains", "battery", or "not measured"')
    load: tuple[FiniteFloat, FiniteFloat] | None = Field(
        description="running processes, average of a minute, before and after; null = not measured"
    )
    notes: tuple[Text, ...] = Field(description="what makes the figures worth less")


class Method(Part):
    """How it was measured."""

    rounds: Count = Field(description="processes of each subject, in turn with the others")
    warmups: Count = Field(description="calls in each process that are not counted")
    calls: Count = Field(description="calls in each process that are counted")
    order: Text = Field(description="how subjects took turns")
    clock: Text


class SubjectEntry(Part):
    """What was measured: one artifact of one bundle."""

    id: Id
    bundle: Text = Field(description="its name")
    seal: Sha256 = Field(description="`sha256` of the bundle's manifest")
    target: Text
    artifact: Sha256 = Field(description="`sha256` of the artifact, as in the manifest")
    bytes: Count
    recipe: Text
    evidence: Evidence = Field(description="grade of the runs: times of a stand-in are `emulated`")
    runtime: Text = Field(description="what computed, for people")
    versions: dict[Text, Text] = Field(description="package or system -> version; at least the runtime's own")


class Rate(Part):
    """A rate, and what it is of."""

    unit: Literal["tokens/s"]
    value: Annotated[FiniteFloat, Field(gt=0)] = Field(description="count / median")
    count: Annotated[int, Field(ge=1)] = Field(description="tokens of one sample")


class Row(Part):
    """One thing that was measured again and again."""

    subject: Id
    measure: Measure
    case: str = Field(max_length=200, description="name of the input; may be empty")
    threads: Annotated[int, Field(ge=1, le=1024)]
    unit: Unit
    n: Annotated[int, Field(ge=1)]
    median: Annotated[FiniteFloat, Field(gt=0)]
    p95: Annotated[FiniteFloat, Field(gt=0)] | None = Field(description="null with less than 20 samples")
    low: Annotated[FiniteFloat, Field(gt=0)]
    high: Annotated[FiniteFloat, Field(gt=0)]
    spread: Annotated[FiniteFloat, Field(ge=0)] = Field(description="distance of the quartiles")
    samples: tuple[FiniteFloat, ...] | None = Field(description="every sample in order, or null")
    rate: Rate | None
    conditions: dict[Text, str | int | float | bool] = Field(description="tokens of the prompt, state of caches, ...")


class Ratio(Part):
    """How two subjects compare, pair by pair: `of` / `to`, so below 1 means that `of` needs less."""

    of: Id
    to: Id
    measure: Measure
    case: str = Field(max_length=200)
    threads: Annotated[int, Field(ge=1, le=1024)]
    pairs: Annotated[int, Field(ge=1)] = Field(description="rounds in which both were measured")
    median: Annotated[FiniteFloat, Field(gt=0)] = Field(description="of the ratios of both medians of a round")
    low: Annotated[FiniteFloat, Field(gt=0)]
    high: Annotated[FiniteFloat, Field(gt=0)]


class Window(Part):
    """A part of a long run."""

    at: Annotated[FiniteFloat, Field(ge=0)] = Field(description="seconds since the run began")
    n: Annotated[int, Field(ge=1)]
    median: Seconds


class Sustained(Part):
    """One subject without a pause."""

    subject: Id
    measure: Literal["token", "latency"]
    case: str = Field(max_length=200)
    threads: Annotated[int, Field(ge=1, le=1024)]
    seconds: Seconds = Field(description="length of the run")
    windows: tuple[Window, ...]
    drift: FiniteFloat = Field(description="last quarter of the windows against the first: +0.1 = 10 % slower")


class Bench(Part):
    """A file of measurements."""

    format: Literal["planish-bench"]
    version: Literal[1]
    created: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    tool: Tool
    environment: Environment
    method: Method
    subjects: tuple[SubjectEntry, ...]
    rows: tuple[Row, ...]
    ratios: tuple[Ratio, ...]
    sustained: tuple[Sustained, ...]


def parse(data: bytes, where: str) -> Bench:
    """Read a file of measurements; strict.

    Raises:
        PlanishError: it is none; names the first key that is wrong.
    """
    hint = "docs/bench.md describes the form; planish bench --lint lists everything that is wrong"
    if len(data) > LARGEST:
        raise PlanishError(f"The file is larger than {LARGEST >> 20} MiB.", where, hint)
    try:
        return Bench.model_validate_json(data)
    except ValidationError as problem:
        first = faults(problem)[0]
        raise PlanishError(f"These are no measurements: {first[0]}: {first[1]}.", where, hint) from problem


def faults(problem: ValidationError) -> list[tuple[str, str]]:
    """(key, what is wrong with it)."""
    return [
        (".".join(str(part) for part in error["loc"]) or "the file", str(error["msg"]))
        for error in problem.errors(include_url=False)
    ]


def schema_text() -> str:
    """The published JSON Schema, byte for byte."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Bench.model_json_schema()}
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
