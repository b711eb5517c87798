"""planish sign"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planish.cli import options
from planish.cli.console import emit_json, out, results_only
from planish.cli.guard import UsageError

if TYPE_CHECKING:
    from planish.trust.sign import Signing

Key = Annotated[Path | None, typer.Option("--key", metavar="KEY.pem", help="Private key that signs.")]
Certificate = Annotated[
    Path | None, typer.Option("--certificate", metavar="CERT.pem", help="Certificate of that key, to be shipped along.")
]
Chain = Annotated[
    list[Path] | None, typer.Option("--chain", metavar="CERT.pem", help="Certificates up to the root; repeatable.")
]
Sigstore = Annotated[bool, typer.Option("--sigstore", help="Sign with an identity, without a key; needs the network.")]
Ambient = Annotated[bool, typer.Option("--ambient", help="With --sigstore: the identity of this CI job.")]


def sign_command(
    bundle: options.Bundle,
    key: Key = None,
    certificate: Certificate = None,
    chain: Chain = None,
    sigstore: Sigstore = False,
    ambient: Ambient = False,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite a signature that is there.")] = False,
    as_json: options.Json = False,
) -> None:
    """Sign a bundle: one file in it, model.sig, vouches for every other file.

    The signature is that of OpenSSF model-signing, whose own command verifies it, too. A key with a password takes it
    from the environment variable PLANISH_KEY_PASSWORD.

    \b
    Make a key once (keep key.pem secret, give key.pub.pem to everybody):
      openssl ecparam -name prime256v1 -genkey -noout -out key.pem
      openssl ec -in key.pem -pubout -out key.pub.pem

    \b
    Examples:
      planish sign my-model-int8.planish --key key.pem
      planish sign my-model-int8.planish --key key.pem --certificate cert.pem
      planish sign my-model-int8.planish --sigstore --ambient     # in a CI job
      planish verify my-model-int8.planish --signature --key key.pub.pem
    """
    with results_only():
        signing = signing_of(key, certificate, chain, sigstore, ambient)
        from planish.trust.sign import sign_bundle

        signed = sign_bundle(bundle, signing, replace=replace)
    if as_json:
        emit_json({"ok": True, "bundle": bundle, "signature": signed})
        return
    by = f"{signed.kind} {signed.fingerprint[:16]}".strip()
    out().print(f"signed {signed.files} files with {by}", style="green")
    out().print("signature", style="bold", end="  ")
    out().print(str(signed.path), soft_wrap=True)


def signing_of(
    key: Path | None, certificate: Path | None, chain: list[Path] | None, sigstore: bool, ambient: bool
) -> Signing:
    """Who signs, by the options.

    Raises:
        UsageError: nobody, or two.
    """
    hint = "--key KEY.pem, or --key KEY.pem --certificate CERT.pem, or --sigstore"
    if sigstore == (key is not None):
        raise UsageError("Nobody signs." if key is None else "A key and Sigstore cannot both sign.", "--key", hint)
    if (certificate is not None or chain) and key is None:
        raise UsageError("A certificate needs its key.", "--certificate", hint)
    if chain and certificate is None:
        raise UsageError("A chain begins with the certificate of the key.", "--chain", hint)
    if ambient and not sigstore:
        raise UsageError("An ambient identity is for Sigstore.", "--ambient", "--sigstore --ambient")
    from planish.trust.sign import CertificateSigner, KeySigner, SigstoreSigner

    if key is None:
        return SigstoreSigner(ambient)
    return KeySigner(key) if certificate is None else CertificateSigner(key, certificate, tuple(chain or ()))
