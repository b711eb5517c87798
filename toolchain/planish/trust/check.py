"""Is a folder what somebody whom we trust has signed? The cryptography is model-signing's own."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish.bundle.manifest import EVIDENCE, SIGNATURE
from planish.trust.envelope import Claim, SignatureRefused
from planish.trust.keys import PublicKey, demand_library
from planish_passes.errors import PlanishError

_FETCH = "copy it again from where it was made, or ask its maker"


@dataclass(frozen=True)
class Identity:
    """Somebody whom an OpenID provider vouches for, through Sigstore.

    Args:
        name: e-mail address or URI of a workflow, as it is in the certificate.
        issuer: URL of the provider.
    """

    name: str
    issuer: str


@dataclass(frozen=True)
class Trusted:
    """Whose signatures count. A certificate counts when one of these roots vouches for it; the roots of the web do not.

    Args:
        keys: public keys.
        roots: PEM files of certificates.
        subjects: names that a certificate may have (RFC 4514, "CN=release,O=Example"); empty = any.
        identities: for Sigstore.
    """

    keys: tuple[PublicKey, ...] = ()
    roots: tuple[Path, ...] = ()
    subjects: tuple[str, ...] = ()
    identities: tuple[Identity, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.keys or self.roots or self.identities)


@dataclass(frozen=True)
class Signer:
    """Who signed, and that it is true.

    Args:
        kind: key, certificate or sigstore.
        name: for people: the key's file, the certificate's subject, the identity.
        fingerprint: of the key or the certificate; "" for Sigstore.
    """

    kind: str
    name: str
    fingerprint: str

    def __str__(self) -> str:
        mark = f" ({self.fingerprint[:16]})" if self.fingerprint else ""
        return f"{self.kind} {self.name}{mark}"


def trusts(trusted: Trusted, claim: Claim) -> bool:
    """Whether anybody is trusted who could have made this signature."""
    if claim.kind == "key":
        return any(key.fingerprint == claim.hint for key in trusted.keys)
    return bool(trusted.roots if claim.kind == "certificate" else trusted.identities)


def verify_claim(claim: Claim, root: Path, trusted: Trusted, where: str) -> Signer:
    """Check a signature, and every file of the folder against it.

    Files that the statement tells to ignore are ignored here: compare `claim.files` with what should be there.

    Args:
        claim: what the signature file says.
        root: the folder that was signed.
        trusted: whose signatures count.
        where: the signature file, for errors.

    Raises:
        SignatureRefused: not of anybody in `trusted`, or not of these files.
        PlanishError: nobody is trusted who signs in this way, or Sigstore cannot be reached.
    """
    demand_library()
    if claim.kind == "key":
        return _by_key(claim, root, trusted, where)
    return (
        _by_certificate(claim, root, trusted, where)
        if claim.kind == "certificate"
        else _online(claim, root, trusted, where)
    )


def _by_key(claim: Claim, root: Path, trusted: Trusted, where: str) -> Signer:
    from model_signing import verifying

    signer = f"the key {claim.hint[:16]}"
    if not trusted.keys:
        raise _unknown(signer, where, "--key PUB.pem")
    key = next((k for k in trusted.keys if k.fingerprint == claim.hint), None)
    if key is None:
        raise SignatureRefused(f"It is signed with {signer}, which is not trusted.", where, _trusted(trusted))
    _run(verifying.Config().use_elliptic_key_verifier(public_key=key.path), claim, root, where)
    return Signer("key", key.path.name, key.fingerprint)


def _by_certificate(claim: Claim, root: Path, trusted: Trusted, where: str) -> Signer:
    from model_signing import verifying

    if not trusted.roots:
        raise _unknown(f"the certificate {claim.hint[:16]}", where, "--certificate ROOT.pem")
    try:
        configured = verifying.Config().use_certificate_verifier(certificate_chain=trusted.roots)
    except (OSError, ValueError) as problem:
        listed = ", ".join(map(str, trusted.roots))
        raise PlanishError(f"The certificates cannot be read: {problem}.", listed, "give PEM files") from problem
    _run(configured, claim, root, where)
    subject = _subject(claim)
    if trusted.subjects and subject not in trusted.subjects:
        hint = f"trusted: {'; '.join(trusted.subjects)}"
        raise SignatureRefused(f"It is signed by {subject}, who is not trusted.", where, hint)
    return Signer("certificate", subject, claim.hint)


def _online(claim: Claim, root: Path, trusted: Trusted, where: str) -> Signer:
    from model_signing import verifying

    if not trusted.identities:
        raise _unknown("a Sigstore identity", where, "--identity NAME --issuer URL")
    refused: list[SignatureRefused] = []
    for person in trusted.identities:
        with reaching_sigstore():
            config = verifying.Config().use_sigstore_verifier(identity=person.name, oidc_issuer=person.issuer)
        try:
            _run(config, claim, root, where)
            return Signer("sigstore", f"{person.name} via {person.issuer}", "")
        except SignatureRefused as problem:
            refused.append(problem)
    raise refused[0]


def _run(config: Any, claim: Claim, root: Path, where: str) -> None:
    from cryptography.exceptions import InvalidSignature
    from model_signing import hashing
    from OpenSSL.crypto import Error, X509StoreContextError
    from sigstore.errors import Error as SigstoreError

    with tempfile.TemporaryDirectory(prefix="planish-signature-") as scratch, _silent():
        # A copy of what was read: the file itself may change in between.
        copy = Path(scratch, SIGNATURE)
        copy.write_bytes(claim.data)
        config.set_hashing_config(
            hashing.Config().set_ignored_paths(paths=(SIGNATURE, EVIDENCE), ignore_git_paths=False)
        )
        try:
            config.verify(root, copy)
        except InvalidSignature as problem:
            what = "The signature does not fit: it was changed, or it was made with another key."
            raise SignatureRefused(what, where, _FETCH) from problem
        except (Error, X509StoreContextError, SigstoreError) as problem:
            raise SignatureRefused(f"The signer is not vouched for: {problem}.", where, _FETCH) from problem
        except (ValueError, TypeError, LookupError, AttributeError, OSError) as problem:
            raise SignatureRefused(f"The signature does not fit: {problem}.", where, _FETCH) from problem


@contextlib.contextmanager
def reaching_sigstore() -> Any:
    """Turns every way in which Sigstore cannot be reached into one error.

    Raises:
        PlanishError: no network, or a service of Sigstore refused.
    """
    from requests import RequestException
    from sigstore.errors import Error as SigstoreError
    from sigstore.errors import TUFError
    from tuf.api.exceptions import DownloadError, RepositoryError

    try:
        yield
    except (SigstoreError, TUFError, RequestException, DownloadError, RepositoryError, OSError) as problem:
        what = f"Sigstore cannot be used from here: {problem or type(problem).__name__}."
        hint = "it needs the network and an identity; --key KEY.pem works without either"
        raise PlanishError(what, "sigstore.dev", hint) from problem


@contextlib.contextmanager
def _silent() -> Any:
    # The library prints warnings of its own to standard output.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _subject(claim: Claim) -> str:
    import base64
    import json

    from cryptography import x509

    material: Mapping[str, Any] = json.loads(claim.data)["verificationMaterial"]
    leaf = base64.b64decode(material["x509CertificateChain"]["certificates"][0]["rawBytes"])
    return str(x509.load_der_x509_certificate(leaf).subject.rfc4514_string())


def _unknown(signer: str, where: str, option: str) -> PlanishError:
    what = f"It is signed with {signer}, and nothing says whom to trust."
    return PlanishError(what, where, f"say whose signature you expect: {option}")


def _trusted(trusted: Trusted) -> str:
    return "trusted: " + ", ".join(f"{k.path.name} ({k.fingerprint[:16]})" for k in trusted.keys)
