"""What a device sends back: outputs, facts of the device, what was run, and a signature over the three.

RESULT/
  outputs.safetensors   every output of every golden case, `<case>/<output>`    (docs/runner-protocol.md)
  device.json           what ran it
  result.json           which bundle, target and artifact
  model.sig             model-signing's signature of the other three
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from torch import Tensor

from planish.bundle import Bundle
from planish.bundle.additions import DEVICE, OUTPUTS, PARTS, RESULT
from planish.bundle.codec import json_bytes
from planish.bundle.files import walk
from planish.bundle.manifest import SIGNATURE
from planish.bundle.part import Part, Sha256
from planish.trust.check import Signer, Trusted, verify_claim
from planish.trust.envelope import LARGEST, Claim, read_claim
from planish_passes.errors import PlanishError
from planish_targets.contract import Evidence

_LIMITS = {RESULT: 64 << 10, DEVICE: 1 << 20, SIGNATURE: LARGEST}
_SPARE = 1 << 20  # bytes of outputs beyond those of the golden file
_AGAIN = "ask the device for it again (docs/trust.md)"
_Model = TypeVar("_Model", bound=BaseModel)


class ResultRefused(PlanishError):
    """A result that is damaged, of something else, or not what its signer signed."""


class Told(Part):
    """result.json: what was run."""

    format: Literal["planish-result"]
    version: Literal[1]
    bundle: Sha256 = Field(description="`sha256` of the bundle's manifest")
    target: str
    artifact: Sha256 = Field(description="`sha256` of the target's artifact, as in the manifest")


class DeviceFacts(BaseModel):
    """device.json, as far as it is read; runners may add keys."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    protocol: Literal[1]
    device: Annotated[str, Field(min_length=1, max_length=500)]
    versions: dict[str, JsonValue]
    evidence: Annotated[Evidence, Field(strict=False)] = Evidence.EMULATED  # what the runner protocol assumes


@dataclass(frozen=True)
class Result:
    """A result that is whole; its author and its numbers are not judged yet.

    Args:
        told: what was run.
        device: what ran it.
        outputs: case -> output -> tensor.
        claim: the signature, unchecked.
        contents: the files that it covers.
    """

    told: Told
    device: DeviceFacts
    outputs: Mapping[str, Mapping[str, Tensor]]
    claim: Claim
    contents: Mapping[str, bytes]

    @property
    def name(self) -> str:
        """Name of its folder in a bundle: equal results of one signer are one."""
        return hashlib.sha256(self.claim.data).hexdigest()[:16]


def describe_run(bundle: Bundle, target: str) -> Told:
    """The result.json of a run of this target.

    Raises:
        PlanishError: the bundle has no artifact for it.
    """
    bundle.artifact(target)
    artifact = bundle.manifest.targets[target].artifact
    assert artifact is not None
    return Told(
        format="planish-result", version=1, bundle=bundle.manifest.sha256, target=target, artifact=artifact.sha256
    )


def write_result(
    folder: Path, told: Told, outputs: Mapping[str, Mapping[str, Tensor]], device: Mapping[str, object]
) -> None:
    """Write the three files that are to be signed; the folder exists and is empty."""
    from safetensors.torch import save

    flat = {
        f"{case}/{name}": t.contiguous().clone() for case, tensors in outputs.items() for name, t in tensors.items()
    }
    (folder / OUTPUTS).write_bytes(save(flat))
    (folder / DEVICE).write_bytes(json_bytes(dict(device)))
    (folder / RESULT).write_bytes(json_bytes(told.model_dump(mode="json")))


def read_result(folder: Path, bundle: Bundle, *, exact: bool = True) -> Result:
    """Read a result and compare it with the bundle that it names.

    Args:
        folder: where it is.
        bundle: the bundle it should be of.
        exact: refuse a signature with bytes that say nothing; those that come from a device may have some.

    Raises:
        ResultRefused, SignatureRefused: unsigned, damaged, altered after it was signed, or of something else.
    """
    contents = _contents(folder, bundle)
    where = str(folder)
    claim = read_claim(contents.pop(SIGNATURE), f"{where}/{SIGNATURE}", exact=exact)
    if claim.files != {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}:
        raise ResultRefused("The result was altered after it was signed.", where, _AGAIN)
    told = _parsed(Told, contents[RESULT], f"{where}/{RESULT}")
    _of(told, bundle, where)
    device = _parsed(DeviceFacts, contents[DEVICE], f"{where}/{DEVICE}")
    return Result(told, device, _tensors(contents[OUTPUTS], f"{where}/{OUTPUTS}"), claim, contents)


def verify_result(result: Result, trusted: Trusted, where: str) -> Signer:
    """Who signed a result.

    Raises:
        SignatureRefused: nobody who is trusted.
    """
    with tempfile.TemporaryDirectory(prefix="planish-result-") as scratch:
        for name, data in result.contents.items():
            Path(scratch, name).write_bytes(data)
        return verify_claim(result.claim, Path(scratch), trusted, where)


def store(result: Result, folder: Path) -> None:
    """Write a result with its signature, in its exact form, into an empty folder."""
    for name, data in {**result.contents, SIGNATURE: result.claim.data}.items():
        (folder / name).write_bytes(data)


def _contents(folder: Path, bundle: Bundle) -> dict[str, bytes]:
    where = str(folder)
    if not folder.is_dir():
        hint = f"give the folder that holds {', '.join(PARTS)}"
        raise ResultRefused("There is no such result.", where, hint)
    try:
        found = dict(walk(folder))
        if missing := [name for name in PARTS if name not in found]:
            unsigned = "The result is not signed" if missing == [SIGNATURE] else "The result is not complete"
            hint = "planish attest signs results; so does model_signing sign key" if missing == [SIGNATURE] else _AGAIN
            raise ResultRefused(f"{unsigned}: there is no {missing[0]}.", where, hint)
        if extra := sorted(set(found) - set(PARTS)):
            raise ResultRefused(f"{extra[0]} does not belong to a result.", where, f"it has {', '.join(PARTS)}")
        return {name: _read(found[name], _LIMITS.get(name, _largest(bundle))) for name in PARTS}
    except OSError as problem:
        what = f"The result cannot be read: {problem.strerror or problem}."
        raise ResultRefused(what, str(problem.filename or where), "check its rights") from problem


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ResultRefused(f"{path.name} is larger than {limit} bytes.", str(path), _AGAIN)
    return data


def _largest(bundle: Bundle) -> int:
    golden = [bundle.manifest.files[t.golden].bytes for t in bundle.manifest.targets.values() if t.golden is not None]
    return 2 * max(golden, default=0) + _SPARE


def _of(told: Told, bundle: Bundle, where: str) -> None:
    if told.bundle != bundle.manifest.sha256:
        hint = f"it is of the bundle {told.bundle[:16]}, this is {bundle.manifest.sha256[:16]}"
        raise ResultRefused("The result is of another bundle.", where, hint)
    entry = bundle.manifest.targets.get(told.target)
    if entry is None or entry.artifact is None:
        raise ResultRefused(f"The bundle has no artifact for {told.target!r}.", where, _AGAIN)
    if told.artifact != entry.artifact.sha256:
        hint = f"it is of the artifact {told.artifact[:16]}, this is {entry.artifact.sha256[:16]}"
        raise ResultRefused("The result is of another artifact.", where, hint)


def _parsed(model: type[_Model], data: bytes, where: str) -> _Model:
    try:
        return model.model_validate_json(data)
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "it"
        raise ResultRefused(f"The result is not valid: {key}: {first['msg']}.", where, _AGAIN) from problem


def _tensors(data: bytes, where: str) -> dict[str, dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    outputs: dict[str, dict[str, Tensor]] = {}
    try:
        for key, tensor in load(data).items():
            case, _, name = key.partition("/")
            outputs.setdefault(case, {})[name] = tensor
    except (SafetensorError, ValueError, KeyError, RuntimeError) as problem:
        raise ResultRefused(f"The outputs are not readable: {problem}.", where, _AGAIN) from problem
    return outputs
