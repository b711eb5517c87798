"""Files that nobody would write: valid ones, mutated by bytes, by tokens of their grammar and by structure.

Every reader of planish must answer with a value or with an error that says what, where and what to do. The whole run is
`python ci/fuzz.py`; `make test` does a small one.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish_passes.errors import PlanishError

NASTY: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    10**400,
    1.5,
    -0.0,
    1e308,
    "",
    " ",
    "x",
    "é漢\u202e",
    "\x1b[2J",
    "a" * 5000,
    "../../etc/passwd",
    "/etc/passwd",
    "C:\\x",
    "con",
    "{}",
    "NaN",
    "Infinity",
    "0" * 64,
    "f" * 40,
    [],
    {},
    [[]],
    [None],
    {"": ""},
    {"a": {"a": {"a": 1}}},
]
TOML_TOKENS = [
    *(b"[", b"]", b"[[", b"]]", b"=", b'"', b"'", b'"""', b"\n", b",", b".", b"{", b"}", b"#", b"0x", b"1e400"),
    *(b"true", b"nan", b"inf", b"-inf", b"\n"),
    b"1979-05-27T07:32:00Z",
    b"\x00",
    b"\xff",
    b"\\u0000",
    b"\\ud800",
    b"\xef\xbb\xbf",
    b"[gates]",
    b"[runner]",
    b'model = "x"',
    b"targets = []",
    b"9" * 5000,
    b"[" * 2000,
    b"a.b.c.d = 1",
    b'[targets."*"]',
    b"[[sources]]",
]
JSON_TOKENS = [
    *(b"{", b"}", b"[", b"]", b":", b",", b'"', b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-", b"\\"),
    b"\\ud800",
    b"\\u0000",
    b"\x00",
    b"\xff",
    b"\xed\xa0\x80",
    b"[" * 3000,
    b'{"a":' * 3000,
    b"9" * 5000,
    b'"sha256"',
    b'"version": 2',
]


@dataclass
class Outcomes:
    """Counts of one reader; `faults` are what must not be."""

    read: int = 0
    refused: int = 0
    faults: list[str] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.faults = []

    @property
    def total(self) -> int:
        """How often it was asked."""
        return self.read + self.refused + len(self.faults)

    def ask(self, label: str, call: Callable[[], object]) -> None:
        """Ask a reader once."""
        try:
            call()
        except PlanishError as error:
            if all(part.strip() for part in (error.what, error.where, error.hint)):
                self.refused += 1
            else:
                self.faults.append(f"{label}: an error that does not say what, where and what to do: {error!r}")
        except (Exception, RecursionError) as error:
            self.faults.append(f"{label}: {type(error).__name__}: {str(error)[:300]}")
        else:
            self.read += 1


def mutated_bytes(data: bytes, tokens: list[bytes], chance: random.Random) -> bytes:
    """One to eight small changes; more often few, which get further into a reader."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 5, 8))):
        at = chance.randrange(len(found) + 1)
        match chance.randrange(7):
            case 0:
                found[at:at] = chance.choice(tokens)
            case 1:
                found[at : at + chance.randint(1, 12)] = chance.choice(tokens)
            case 2:
                del found[at : at + chance.randint(1, 20)]
            case 3 if at < len(found):
                found[at] ^= 1 << chance.randrange(8)
            case 4:
                end = at + chance.randint(1, 60)
                found[at:at] = found[at:end]
            case 5 if chance.random() < 0.2:
                del found[at:]
            case _:
                found[at:at] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 4)))
    return bytes(found)


def mutated_values(data: Any, chance: random.Random) -> Any:
    """One to four values, keys or parts of a JSON document replaced."""
    made = copy.deepcopy(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        nodes = [(holder, key) for holder, key in _places(made)]
        if not nodes:
            break
        holder, key = chance.choice(nodes)
        match chance.randrange(9):
            case 0:
                holder[key] = copy.deepcopy(chance.choice(NASTY))
            case 6 | 7 | 8:  # of the same type, which readers are more likely to take
                same = [v for v in NASTY if type(v) is type(holder[key])]
                holder[key] = copy.deepcopy(chance.choice(same or NASTY))
            case 1 | 2:
                del holder[key]
            case 3 if isinstance(holder, dict):
                holder[chance.choice(["new", "", "a" * 300, "\x1b[1m", "../x", "version", "x", "executorch"])] = holder[
                    key
                ]
            case 4:
                other, place = chance.choice(nodes)
                if key in (holder if isinstance(holder, dict) else range(len(holder))):
                    holder[key] = copy.deepcopy(other[place])
            case _ if isinstance(holder, list):
                holder.extend(copy.deepcopy(holder))
            case _:
                holder[key] = [holder[key]]
    return made


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(data, (dict, list)):
        for key in list(data) if isinstance(data, dict) else range(len(data)):
            yield data, key
            yield from _places(data[key])


REQUEST = b"""# a request
model = "MODEL"
targets = ["onnxruntime", "coreml"]
recipe = "int8"
group = 32
symmetric = true
rounding = "search"
bits = 4.5
max_size = "90MB"
output = "out.planish"
task = "feature-extraction"
sequence_length = 256
context = 512
dynamic = false
threads = 2
timeout = 60.5
logits = "last"
[gates]
cosine = 0.99
agreement = 0.9
[runner]
directml = "ssh winbox planish-run"
"""
POLICY = b"""version = 1
recipes = ["int8"]
licenses = ["apache-2.0"]
max_age_days = 180
planish = ">=0.1"
[signature]
keys = ["maker.pub.pem"]
[[sources]]
hub = "BAAI/*"
revision = "0123456789012345678901234567890123456789"
[sources.files]
"model.safetensors" = "0000000000000000000000000000000000000000000000000000000000000000"
[targets.onnxruntime]
evidence = "executed"
checks = ["quality", "lowering"]
[targets."*"]
evidence = "emulated"
"""
FLAGS: dict[str, Any] = {
    "model": "x",
    "targets": ["onnxruntime"],
    "recipe": "int8",
    "gates": {"cosine": 0.9},
    "runner": {"coreml": "ssh mac"},
    "threads": 1,
    "timeout": 5.0,
    "max_size": "1GB",
}


def fuzz_requests(folder: Path, count: int, seed: int) -> Outcomes:
    """Request files and flags."""
    from planish.request_file import load_request

    chance, outcomes, file = random.Random(seed), Outcomes(), folder / "planish.toml"
    for number in range(count):
        if number % 5 == 4:
            flags = mutated_values(FLAGS, chance)
            outcomes.ask(f"flags {flags!r:.300}", lambda f=flags: load_request(None, f))
            continue
        data = mutated_bytes(REQUEST, TOML_TOKENS, chance)
        file.write_bytes(data)
        outcomes.ask(f"request {data!r:.600}", lambda: load_request(file, {}))
    return outcomes


def fuzz_manifests(bundle: Path, count: int, seed: int) -> Outcomes:
    """Manifests by bytes, and by values with a seal that fits; all that planish does with one without running it.

    The bundle is changed and left as it was.
    """
    from tampering import seal

    path = bundle / "manifest.json"
    whole, chance, outcomes = path.read_bytes(), random.Random(seed), Outcomes()
    data = json.loads(whole)
    try:
        for number in range(count):
            if number % 3 == 0:
                changed = mutated_bytes(whole, JSON_TOKENS, chance)
                path.write_bytes(changed)
                label = f"manifest bytes {number} of seed {seed}"
            else:
                values = mutated_values(data, chance)
                path.write_bytes(whole)
                try:
                    seal(bundle, lambda _, v=values: v)
                except (TypeError, ValueError):  # not JSON any more: nothing to read
                    continue
                label = f"manifest values {number} of seed {seed}"
            outcomes.ask(label, lambda: use(bundle))
    finally:
        path.write_bytes(whole)
    return outcomes


def use(bundle: Path) -> None:
    """Open a bundle, and ask everything of it that needs no runtime."""
    from planish.bundle import open_bundle
    from planish.bundle.provenance import provenance
    from planish.bundle.sbom import sbom
    from planish.cli.commands.inspect import show, to_json
    from planish.cli.console import plain
    from planish.cli.results import results_to_json, show_results
    from planish.compiled import Silent
    from planish.inspect import BundleFacts
    from planish.trust.check import Trusted
    from planish.trust.evidence import judge_recorded
    from planish.trust.judge import judge
    from planish.trust.policy import Policy
    from planish.verify import Ask, verify_bundle
    from planish.verify.golden import check_golden, golden_inputs
    from planish_targets.contract import Evidence

    opened = open_bundle(bundle)
    opened.check_hashes()
    judge_recorded(opened, Trusted())
    for text in POLICIES:
        judge(Policy.model_validate(text), opened.manifest, ())
    json.dumps(sbom(opened.manifest))
    json.dumps(provenance(opened.manifest, "https://x.example"))
    facts = BundleFacts(bundle, opened.manifest, {}, "key", tuple(r.target for r in opened.evidence()))
    json.dumps(plain(to_json(facts)))
    ask = Ask(run=False)
    report = verify_bundle(bundle, targets=None, runner={}, threads=1, timeout=9, progress=Silent(), ask=ask)
    json.dumps(plain(results_to_json(report, {})))
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")):
        show(facts)
        show_results(report, {}, str(bundle))
    for name, entry in opened.manifest.targets.items():
        if entry.artifact is not None:
            opened.artifact(name)
            golden_inputs(opened, name)
            check_golden(opened, name, opened.golden(name)[1], Evidence.EXECUTED, "x")


def _policies() -> list[dict[str, Any]]:
    import tomllib

    whole = tomllib.loads(POLICY.decode())
    return [whole, {**whole, "targets": {"coreml": {"evidence": "not-run"}}}]


POLICIES = _policies()


def fuzz_policies(folder: Path, public: bytes, count: int, seed: int) -> Outcomes:
    """Policies; `public` is the key that they name."""
    from planish.trust.policy import load_policy

    chance, outcomes, file = random.Random(seed), Outcomes(), folder / "policy.toml"
    (folder / "maker.pub.pem").write_bytes(public)
    for _ in range(count):
        data = mutated_bytes(POLICY, TOML_TOKENS, chance)
        file.write_bytes(data)
        outcomes.ask(f"policy {data!r:.600}", lambda: load_policy(file))
    return outcomes


def fuzz_signatures(bundle: Path, trusted: Any, count: int, seed: int) -> Outcomes:
    """Signature files, by bytes and by values; one that is read is one that is refused."""
    from planish.bundle import open_bundle
    from planish.trust.signed import check_signature
    from planish.verdict import Passed

    path, chance, outcomes = bundle / "model.sig", random.Random(seed), Outcomes()
    whole = path.read_bytes()
    data, opened = json.loads(whole), open_bundle(bundle)

    def ask() -> None:
        verdict, _ = check_signature(opened, trusted)
        if isinstance(verdict, Passed) and path.read_bytes() != whole:
            raise AssertionError("a changed signature counts")

    try:
        for number in range(count):
            if number % 2:
                path.write_text(json.dumps(mutated_values(data, chance), separators=(",", ":")))
            else:
                path.write_bytes(mutated_bytes(whole, JSON_TOKENS, chance))
            outcomes.ask(f"signature {number} of seed {seed}", ask)
    finally:
        path.write_bytes(whole)
    return outcomes


def fuzz_archives(bundle: Path, folder: Path, count: int, seed: int) -> Outcomes:
    """Packed bundles, stored and deflated."""
    import shutil

    from planish.bundle.pack import pack_bundle
    from planish.bundle.unpack import unpack_and_check

    chance, outcomes, file = random.Random(seed), Outcomes(), folder / "fuzzed.zip"
    wholes = [pack_bundle(bundle, folder / f"{d}.zip", deflate=d).path.read_bytes() for d in (False, True)]
    tokens = [
        b"PK\3\4",
        b"PK\1\2",
        b"PK\5\6",
        b"PK\6\6",
        b"PK\6\7",
        b"\xff" * 4,
        b"\xff" * 8,
        b"\0" * 4,
        b"\1\0",
        b"../x",
    ]
    for number in range(count):
        file.write_bytes(mutated_bytes(wholes[number % 2], tokens, chance))
        outcomes.ask(f"archive {number} of seed {seed}", lambda: unpack_and_check(file, folder / "out"))
        shutil.rmtree(folder / "out", ignore_errors=True)
    return outcomes


def fuzz_results(bundle: Path, result: Path, count: int, seed: int) -> Outcomes:
    """Results of devices whose signature is not looked at: what a device may send that has a good key."""
    from planish.bundle import open_bundle
    from planish.trust import results
    from planish.verify.golden import check_golden

    chance, outcomes, opened = random.Random(seed), Outcomes(), open_bundle(bundle)
    files = {name: (result / name).read_bytes() for name in ("outputs.safetensors", "device.json", "result.json")}

    def ask(name: str, data: bytes) -> None:
        contents = {**files, name: data}
        results._parsed(results.Told, contents["result.json"], "x")
        facts = results._parsed(results.DeviceFacts, contents["device.json"], "x")
        outputs = results._tensors(contents["outputs.safetensors"], "x")
        check_golden(opened, "coreml", outputs, facts.evidence, facts.device, "device")

    for number in range(count):
        name = chance.choice(list(files))
        data = mutated_bytes(files[name], JSON_TOKENS, chance)
        outcomes.ask(f"result {name} {number} of seed {seed}", lambda n=name, d=data: ask(n, d))
    return outcomes


def fuzz_golden(bundle: Path, count: int, seed: int) -> Outcomes:
    """Golden tensors in a bundle whose hashes fit."""
    import hashlib

    from tampering import seal

    path, manifest = bundle / "golden" / "coreml.safetensors", bundle / "manifest.json"
    whole, before, chance, outcomes = path.read_bytes(), manifest.read_bytes(), random.Random(seed), Outcomes()

    def sealed(data: Any, changed: bytes) -> None:
        entry = {"bytes": len(changed), "sha256": hashlib.sha256(changed).hexdigest()}
        data["files"]["golden/coreml.safetensors"] = entry

    try:
        for number in range(count):
            changed = mutated_bytes(whole, JSON_TOKENS, chance)
            path.write_bytes(changed)
            manifest.write_bytes(before)
            seal(bundle, lambda d, c=changed: sealed(d, c))
            outcomes.ask(f"golden {number} of seed {seed}", lambda: use(bundle))
    finally:
        path.write_bytes(whole)
        manifest.write_bytes(before)
    return outcomes
