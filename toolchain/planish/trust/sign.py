"""Sign a bundle with OpenSSF model-signing: one file, `model.sig`, that vouches for every other."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish.bundle import Bundle, open_bundle
from planish.bundle.files import fingerprint, settle_file, settle_folder
from planish.bundle.manifest import EVIDENCE, MANIFEST, SIGNATURE
from planish.trust.check import reaching_sigstore
from planish.trust.envelope import Claim, read_claim
from planish.trust.keys import demand_library, password, private_key
from planish_passes.errors import PlanishError


@dataclass(frozen=True)
class KeySigner:
    """A private key."""

    key: Path


@dataclass(frozen=True)
class CertificateSigner:
    """A private key with the certificate of its public half, and the certificates between it and the root."""

    key: Path
    certificate: Path
    chain: tuple[Path, ...] = ()


@dataclass(frozen=True)
class SigstoreSigner:
    """An identity that an OpenID provider vouches for: needs the network.

    Args:
        ambient: use the identity of the CI job; else a browser asks.
        token: an identity token; wins over both.
    """

    ambient: bool = False
    token: str | None = None


Signing = KeySigner | CertificateSigner | SigstoreSigner


@dataclass(frozen=True)
class Signed:
    """A new signature.

    Args:
        path: the file.
        kind: key, certificate or sigstore.
        fingerprint: of the key or the certificate; "" for Sigstore.
        files: how many files it covers.
    """

    path: Path
    kind: str
    fingerprint: str
    files: int


def sign_bundle(path: Path, signing: Signing, *, replace: bool = False) -> Signed:
    """Write `model.sig` into a bundle that is whole.

    Args:
        path: the bundle.
        signing: who signs.
        replace: an older signature may be overwritten.

    Raises:
        PlanishError: no bundle, a damaged one, one that is signed already, or a key that cannot sign.
    """
    demand_library()
    bundle = open_bundle(path)
    at = bundle.root / SIGNATURE
    if os.path.lexists(at) and not replace:
        raise PlanishError("The bundle is signed already.", str(at), "--replace puts the new signature in its place")
    if problems := bundle.check_hashes():
        hint = "copy it again from where it was made, or compile it again; then sign it"
        raise PlanishError(f"The bundle is not whole, so it is not signed: {problems[0]}.", str(bundle.root), hint)
    claim = sign_folder(bundle.root, signing, at, signed_files(bundle), (SIGNATURE, EVIDENCE))
    return Signed(at, claim.kind, claim.hint, len(claim.files))


def signed_files(bundle: Bundle) -> dict[str, str]:
    """What a signature of a bundle must cover: path -> sha256 of every file but the signature and the evidence."""
    listed = {path: entry.sha256 for path, entry in bundle.manifest.files.items()}
    return {MANIFEST: fingerprint(bundle.root / MANIFEST).sha256, **listed}


def sign_folder(root: Path, signing: Signing, at: Path, expected: Mapping[str, str], ignored: tuple[str, ...]) -> Claim:
    """Sign a folder; the signature appears whole or not at all.

    Args:
        root: the folder.
        signing: who signs.
        at: the signature file.
        expected: path -> sha256 of what is to be signed.
        ignored: paths that are not part of it.

    Raises:
        PlanishError: a key that cannot sign, or the folder holds something else by now.
    """
    from model_signing import hashing

    config = _configured(signing)
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=False))
    new = root.parent / f".{root.name}.sig-{secrets.token_hex(4)}"
    try:
        with ExitStack() as stack:
            if isinstance(signing, SigstoreSigner):
                stack.enter_context(reaching_sigstore())
            config.sign(root, new)
        claim = read_claim(new.read_bytes(), str(at))
        if claim.files != expected:
            raise PlanishError("The files changed while they were signed.", str(root), "sign it again")
        settle_file(new)
        os.replace(new, at)
    finally:
        new.unlink(missing_ok=True)
    settle_folder(at.parent)
    return claim


def _configured(signing: Signing) -> Any:
    from model_signing import signing as library

    config = library.Config()
    if isinstance(signing, SigstoreSigner):
        with reaching_sigstore():
            return config.use_sigstore_signer(use_ambient_credentials=signing.ambient, identity_token=signing.token)
    private_key(signing.key)  # explains what is wrong with it
    if isinstance(signing, KeySigner):
        # The library's type says str; what it does with it needs bytes.
        return config.use_elliptic_key_signer(private_key=signing.key, password=password(signing.key))
    chain = signing.chain or (signing.certificate,)  # model-signing 1.1 cannot read an empty one
    try:
        return config.use_certificate_signer(
            private_key=signing.key, signing_certificate=signing.certificate, certificate_chain=chain
        )
    except (OSError, ValueError, TypeError) as problem:
        where = ", ".join(map(str, (signing.certificate, *signing.chain)))
        hint = "give PEM files; the certificate must be of the key, and the key without a password"
        raise PlanishError(f"The certificate cannot sign: {problem}.", where, hint) from problem
