"""A signature file is read strictly: what planish reads and what model-signing reads is one thing."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planish.bundle.manifest import SIGNATURE
from planish.trust.envelope import LARGEST, SignatureRefused, read_claim


@pytest.fixture
def signature(bundle: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((bundle / SIGNATURE).read_text())
    return data


def compact(data: object) -> bytes:
    """JSON without a byte that says nothing."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()


def payload_of(signature: dict[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(base64.b64decode(signature["dsseEnvelope"]["payload"]))
    return data


def with_payload(signature: dict[str, Any], payload: dict[str, Any]) -> bytes:
    signature["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    return compact(signature)


def test_what_it_claims(signature: dict[str, Any], bundle: Path) -> None:
    claim = read_claim(compact(signature), "x")
    assert claim.kind == "key"
    assert claim.hint == signature["verificationMaterial"]["publicKey"]["hint"]
    assert set(claim.files) == {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()} - {
        SIGNATURE
    }
    assert read_claim(claim.data, "x") == claim


CHANGES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda s: s.update(dsse_envelope=s["dsseEnvelope"]), "dsse_envelope: Extra inputs"),
    (lambda s: s.update(surprise=1), "surprise: Extra inputs"),
    (lambda s: s["verificationMaterial"].update(content=1), "content: Extra inputs"),
    (lambda s: s.update(mediaType="application/json"), "mediaType: Input should be"),
    (lambda s: s["dsseEnvelope"].update(payloadType="text/plain"), "payloadType: Input should be"),
    (lambda s: s["dsseEnvelope"]["signatures"].append({"sig": "AAAA"}), "at most 1 item"),
    (lambda s: s["dsseEnvelope"].update(signatures=[]), "at least 1 item"),
    (lambda s: s["dsseEnvelope"].update(payload="?"), "not valid base64"),
    (lambda s: s["dsseEnvelope"].update(payload=base64.b64encode(b"{").decode()), "is not readable JSON"),
    (lambda s: s["verificationMaterial"].pop("publicKey"), "does not name one signer"),
    (lambda s: s["verificationMaterial"].update(certificate={"rawBytes": "AAAA"}), "does not name one signer"),
    (lambda s: s["verificationMaterial"].update(publicKey={"hint": None}), "publicKey.hint"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_changed_envelope(signature: dict[str, Any], change: Callable[[dict[str, Any]], Any], message: str) -> None:
    change(signature)
    with pytest.raises(SignatureRefused, match=message):
        read_claim(compact(signature), "x")


PAYLOADS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda p: p.update(predicateType="https://model_signing/Digests/v0.1"), "predicateType"),
    (lambda p: p["predicate"]["serialization"].update(method="shards"), "method"),
    (lambda p: p["predicate"]["serialization"].update(hash_type="blake3"), "hash_type"),
    (lambda p: p["predicate"]["serialization"].update(allow_symlinks=True), "allow_symlinks"),
    (lambda p: p["predicate"]["serialization"].update(allow_symlinks="false"), "allow_symlinks"),
    (lambda p: p["predicate"]["resources"].append(p["predicate"]["resources"][0]), "listed twice"),
    (lambda p: p["predicate"]["resources"][0].update(name="../x"), "must not lead out"),
    (lambda p: p["predicate"]["resources"][0].update(name="/x"), "should match pattern"),
    (lambda p: p.update(subject=p["subject"] * 2), "at most 1 item"),
    (lambda p: p["predicate"].update(resources=[]), "at least 1 item"),
]


@pytest.mark.parametrize(("change", "message"), PAYLOADS)
def test_changed_statement(signature: dict[str, Any], change: Callable[[dict[str, Any]], Any], message: str) -> None:
    payload = payload_of(signature)
    change(payload)
    with pytest.raises(SignatureRefused, match=message):
        read_claim(with_payload(signature, payload), "x")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not readable JSON"),
        (b"\xff", "not readable JSON"),
        (b"[" * 100_000, "not readable JSON"),
        (b"NaN", "NaN is not JSON"),
        (b'{"a": 1, "a": 2}', "a key appears twice"),
        (b"[]", "not valid: it: Input should be"),
        (b" " * (LARGEST + 1), "larger than 16 MiB"),
    ],
)
def test_what_is_no_signature(data: bytes, message: str) -> None:
    with pytest.raises(SignatureRefused, match=message):
        read_claim(data, "x")


NOTHING = [
    lambda d: d + b"\n",
    lambda d: b" " + d,
    lambda d: d.replace(b"/", b"\\/", 1),
    lambda d: d.replace(b',"keyid":""', b""),
    lambda d: d.replace(b',"tlogEntries":[]', b""),
]


@pytest.mark.parametrize("spaced", NOTHING)
def test_bytes_that_say_nothing(signature: dict[str, Any], spaced: Callable[[bytes], bytes]) -> None:
    data = spaced(compact(signature))
    with pytest.raises(SignatureRefused, match="not as model-signing writes it"):
        read_claim(data, "x")
    assert data != compact(signature)
    assert read_claim(data, "x", exact=False).data == compact(signature)


@pytest.mark.parametrize("where", ["payload", "sig"])
def test_bits_that_decode_to_nothing(signature: dict[str, Any], where: str) -> None:
    envelope = signature["dsseEnvelope"]
    holder, key = (envelope, "payload") if where == "payload" else (envelope["signatures"][0], "sig")
    data = base64.b64decode(holder[key])
    data += b"" if len(data) % 3 else b" "  # until there are such bits
    text = base64.b64encode(data).decode()
    last = text.rstrip("=")[-1]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = alphabet[alphabet.index(last) + 1]
    holder[key] = text.rstrip("=")[:-1] + other + "=" * text.count("=")
    assert base64.b64decode(holder[key], validate=True) == data
    with pytest.raises(SignatureRefused, match="last bits are not zero"):
        read_claim(compact(signature), "x")
