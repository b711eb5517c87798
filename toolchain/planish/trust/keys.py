"""Keys as PEM files. Signatures are ECDSA over NIST curves, which model-signing, Apple, Java and .NET all have."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish_passes.errors import PlanishError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

PASSWORD = "PLANISH_KEY_PASSWORD"  # environment variable: the command line is visible to every process
CURVES = ("secp256r1", "secp384r1", "secp521r1")
_LARGEST = 1 << 20
_MAKE = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem"
_PUBLIC = "openssl ec -in key.pem -pubout -out key.pub.pem"


@dataclass(frozen=True)
class PublicKey:
    """A key that is trusted.

    Args:
        path: its PEM file.
        fingerprint: sha256 of the key as PEM (SubjectPublicKeyInfo), as model-signing names it in signatures.
    """

    path: Path
    fingerprint: str


def demand_library() -> None:
    """Nothing, when model-signing can be imported.

    Raises:
        PlanishError: it cannot.
    """
    try:
        import model_signing  # noqa: F401
    except ImportError as problem:
        what = f"Signatures need the package model-signing, which does not work here: {problem}."
        raise PlanishError(what, "model-signing", "pip install 'planish[sign]'") from problem


def public_key(path: Path) -> PublicKey:
    """Read a public key.

    Raises:
        PlanishError: not there, or not a public key of a curve that signatures use.
    """
    demand_library()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    data = _read(path)
    hint = f"give a public key: {_PUBLIC}"
    if b"PRIVATE KEY" in data:
        raise PlanishError("This is a private key, and nobody should be sent it.", str(path), hint)
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as problem:
        raise PlanishError("This is no public key in PEM form.", str(path), hint) from problem
    return PublicKey(path, fingerprint(_elliptic(key, path)))


def private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private key; its password, where it has one, is in the environment.

    Raises:
        PlanishError: not there, locked, or not a private key of a curve that signatures use.
    """
    demand_library()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    data, given = _read(path), password(path)
    if b"PUBLIC KEY" in data:
        raise PlanishError("This is a public key; only the private one can sign.", str(path), f"make one: {_MAKE}")
    try:
        key = serialization.load_pem_private_key(data, given)
    except TypeError as problem:
        hint = f"set {PASSWORD} in the environment"
        raise PlanishError("The private key is locked with a password.", str(path), hint) from problem
    except (ValueError, UnsupportedAlgorithm) as problem:
        if given is not None:
            what, hint = "The password does not open the private key.", f"mend {PASSWORD} in the environment"
        else:
            what, hint = "This is no private key in PEM form.", f"make one: {_MAKE}"
        raise PlanishError(what, str(path), hint) from problem
    _elliptic(key.public_key(), path)
    return key  # type: ignore[return-value]


def password(path: Path) -> bytes | None:
    """The password of a private key, as the environment gives it; None for a key that is not locked."""
    told = os.environ.get(PASSWORD)
    return os.fsencode(told) if told and _locked(_read(path)) else None


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """sha256 (hex) of the key's PEM form."""
    from cryptography.hazmat.primitives import serialization

    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def _locked(data: bytes) -> bool:
    return b"ENCRYPTED" in data


def _elliptic(key: Any, path: Path) -> ec.EllipticCurvePublicKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise PlanishError("Signatures are made with elliptic curves; this is another kind of key.", str(path), _MAKE)
    if key.curve.name not in CURVES:
        raise PlanishError(f"The curve {key.curve.name} is not one of {', '.join(CURVES)}.", str(path), _MAKE)
    return key


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise PlanishError(f"The key cannot be read: {reason}.", str(path), "give the path of a PEM file") from problem
    if len(data) > _LARGEST:
        raise PlanishError("The file is too large to be a key.", str(path), "give the path of a PEM file")
    return data
