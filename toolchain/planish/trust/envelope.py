"""What a signature file claims, before anybody believes it.

The file is a Sigstore bundle: a DSSE envelope around an in-toto statement that lists every file with its hash, as
OpenSSF model-signing 1.x writes it (predicate https://model_signing/signature/v1.0). Older forms, shards and followed
links are refused, and so is every key that is not known: what planish reads and what model-signing reads must be one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError
from pydantic.alias_generators import to_camel

from planish.bundle.part import BundlePath, Sha256
from planish_passes.errors import PlanishError

LARGEST = 16 << 20
_HINT = "sign the bundle again: planish sign BUNDLE --key KEY.pem --replace"


_Model = TypeVar("_Model", bound=BaseModel)


class SignatureRefused(PlanishError):
    """A signature that is missing, damaged, of somebody else, or of something else."""


@dataclass(frozen=True)
class Claim:
    """An unchecked signature.

    Args:
        data: the file again, in one canonical form: what is handed to model-signing is what was read here.
        kind: how it was signed.
        hint: fingerprint of the public key (`key`) or sha256 of the certificate; "" for Sigstore.
        files: path -> sha256.
    """

    data: bytes
    kind: Literal["key", "certificate", "sigstore"]
    hint: str
    files: Mapping[str, str]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, alias_generator=to_camel)


class _Signed(_Strict):
    sig: str
    keyid: Literal[""] = ""


class _Envelope(_Strict):
    payload: str
    payload_type: Literal["application/vnd.in-toto+json"]
    signatures: Annotated[list[_Signed], Field(min_length=1, max_length=1)]


class _PublicKey(_Strict):
    hint: Sha256


class _Certificate(_Strict):
    raw_bytes: str


class _Chain(_Strict):
    certificates: Annotated[list[_Certificate], Field(min_length=1, max_length=16)]


class _Material(_Strict):
    public_key: _PublicKey | None = None
    x509_certificate_chain: Annotated[_Chain | None, Field(alias="x509CertificateChain")] = None
    certificate: _Certificate | None = None
    tlog_entries: list[JsonValue] = []
    timestamp_verification_data: JsonValue = None


class _Bundle(_Strict):
    media_type: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"]
    verification_material: _Material
    dsse_envelope: _Envelope


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Digest(_Plain):
    sha256: Sha256


class _Subject(_Plain):
    name: str
    digest: _Digest


class _Resource(_Plain):
    name: BundlePath
    algorithm: Literal["sha256"]
    digest: Sha256


class _Serialization(_Plain):
    method: Literal["files"]
    hash_type: Literal["sha256"]
    allow_symlinks: Literal[False]
    ignore_paths: Annotated[list[Annotated[str, StringConstraints(max_length=1024)]], Field(max_length=64)] = []


class _Predicate(_Plain):
    serialization: _Serialization
    resources: Annotated[list[_Resource], Field(min_length=1)]


class _Statement(_Plain):
    type: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")]
    subject: Annotated[list[_Subject], Field(min_length=1, max_length=1)]
    predicate_type: Annotated[Literal["https://model_signing/signature/v1.0"], Field(alias="predicateType")]
    predicate: _Predicate


def read_claim(data: bytes, where: str, *, exact: bool = True) -> Claim:
    """Read a signature file; nothing in it is checked against anything yet.

    Args:
        data: the file.
        where: its name, for errors.
        exact: byte for byte as model-signing writes it, so that whoever changes one is noticed. Writers in other
            languages may add spaces and escapes, and leave out what is empty.

    Raises:
        SignatureRefused: not a signature of model-signing 1.x, or one with more in it than is understood.
    """
    if len(data) > LARGEST:
        raise SignatureRefused(f"The signature is larger than {LARGEST >> 20} MiB.", where, _HINT)
    raw = _json(data, "The signature", where)
    bundle = _valid(_Bundle, raw, "The signature", where)
    payload = _decoded(bundle.dsse_envelope.payload, where)
    _decoded(bundle.dsse_envelope.signatures[0].sig, where)
    statement = _valid(_Statement, _json(payload, "What is signed", where), "What is signed", where)
    files = {resource.name: resource.digest for resource in statement.predicate.resources}
    if len(files) != len(statement.predicate.resources):
        raise SignatureRefused("What is signed is not valid: a path is listed twice.", where, _HINT)
    kind, hint = _signer(bundle.verification_material, where)
    canonical = _compact(bundle.model_dump(mode="json", by_alias=True, exclude_none=True))
    # What Sigstore's services add is theirs to arrange.
    if exact and data != (_compact(raw) if kind == "sigstore" else canonical):
        raise SignatureRefused("The signature is not as model-signing writes it.", where, _HINT)
    return Claim(canonical, kind, hint, files)


def _compact(data: Any) -> bytes:
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def _signer(material: _Material, where: str) -> tuple[Literal["key", "certificate", "sigstore"], str]:
    named = (material.public_key, material.x509_certificate_chain, material.certificate)
    if sum(part is not None for part in named) != 1:
        raise SignatureRefused("The signature does not name one signer.", where, _HINT)
    if material.public_key is not None:
        return "key", material.public_key.hint
    if material.x509_certificate_chain is not None:
        leaf = _decoded(material.x509_certificate_chain.certificates[0].raw_bytes, where)
        return "certificate", hashlib.sha256(leaf).hexdigest()
    return "sigstore", ""


def _decoded(text: str, where: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as problem:
        raise SignatureRefused(f"The signature is not valid base64: {problem}.", where, _HINT) from problem
    if base64.b64encode(data).decode() != text:  # bits that decode to nothing
        raise SignatureRefused("The signature is not valid base64: its last bits are not zero.", where, _HINT)
    return data


def _json(data: bytes, what: str, where: str) -> Any:
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as problem:
        raise SignatureRefused(f"{what} is not readable JSON: {problem}.", where, _HINT) from problem


def _valid(model: type[_Model], raw: Any, what: str, where: str) -> _Model:
    try:
        return model.model_validate(raw)
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "it"
        raise SignatureRefused(f"{what} is not valid: {key}: {first['msg']}.", where, _HINT) from problem


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key appears twice")
    return made


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
