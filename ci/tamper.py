"""Tamper with a signed bundle in every way that tests/tampering.py knows: all must be refused, and none crash.

    python ci/tamper.py                 about 4000 attempts on bundles of a tiny random model, some minutes
    python ci/tamper.py --every 20      every 20th
    python ci/tamper.py --json

Each attempt asks `planish verify --signature`, and model-signing's own command beside it. Exit code 1 when one attempt
was not refused, or ended in anything but an error that says what, where and what to do.
"""

from __future__ import annotations

import argparse
import collections
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from bundles import Pair, key_pair
from tampering import SIGNATURE, Mutation, mutations


def main() -> int:
    """Run the whole suite and print the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every N-th attempt")
    parser.add_argument("--seed", type=int, default=0, help="of the random places")
    parser.add_argument("--json", action="store_true", help="counts as JSON")
    asked = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="planish-tamper-") as scratch:
        root = Path(scratch)
        bundle, other, keys = build(root)
        found = attempt(bundle, other, keys, root / "work", asked.every, asked.seed)
        found["packed bits"] = packed(bundle, keys, root / "packed", asked.every, asked.seed)
    found["seconds"] = round(time.monotonic() - began)
    if asked.json:
        print(json.dumps(found, indent=1))
    else:
        tell(found)
    return int(bool(found["not refused"] or found["crashed"] or found["packed bits"]["not refused"]))


def build(root: Path) -> tuple[Path, Path, dict[str, Pair]]:
    """Two signed bundles of tiny random models, the first with evidence of a device, and the keys."""
    import transformers as tf
    from support import FAMILIES, random_model

    from planish.build import compile_model
    from planish.bundle import write_bundle
    from planish.compiled import Silent
    from planish.request import Request
    from planish.trust.check import Trusted
    from planish.trust.evidence import accept, attest
    from planish.trust.keys import public_key
    from planish.trust.sign import KeySigner, sign_bundle
    from planish.verify.lowering import Execution

    keys = {name: key_pair(root, name) for name in ("maker", "phone")}
    made = []
    for seed in (0, 1):
        model = root / f"model{seed}"
        random_model(FAMILIES["bert"](), tf.AutoModel, seed).save_pretrained(model)
        request = Request(model=str(model), targets=("onnxruntime", "executorch"), recipe="int8")
        compiled = compile_model(request.model_copy(update={"keep_failed": True}), Silent(), root / f"work{seed}")
        made.append(write_bundle(compiled, root / f"bundle{seed}.planish"))
        sign_bundle(made[-1], KeySigner(keys["maker"].private))
    attest(made[0], "onnxruntime", KeySigner(keys["phone"].private), root / "result", Execution(), keep_failed=True)
    accept(made[0], root / "result", Trusted((public_key(keys["phone"].public),)), keep_failed=True)
    return made[0], made[1], keys


def attempt(bundle: Path, other: Path, keys: dict[str, Pair], work: Path, every: int, seed: int) -> dict[str, Any]:
    """Try every mutation; counts by kind, and the names of those that were not refused."""
    kinds: collections.Counter[str] = collections.Counter()
    told: dict[str, Any] = {"attempts": 0, "exit codes": collections.Counter(), "not refused": [], "crashed": []}
    theirs: dict[str, Any] = {"refused": 0, "accepted as meant": 0, "accepted": []}
    code, crash = verify(bundle, keys)
    if code != 0:
        raise SystemExit(f"the untouched bundle is refused with {code}: {crash}")
    for number, mutation in enumerate(mutations(bundle, other, seed)):
        if number % every:
            continue
        at = fresh(bundle, work)
        mutation.apply(at)
        kinds[mutation.kind] += 1
        told["attempts"] += 1
        code, crash = verify(at, keys)
        told["exit codes"][str(code)] += 1
        if crash:
            told["crashed"].append(f"{mutation.kind}: {mutation.name}: {crash}")
        elif code not in (1, 3):
            told["not refused"].append(f"{mutation.kind}: {mutation.name}: exit code {code}")
        if not (at / SIGNATURE).is_fifo():  # which it would wait for until the end of days
            _count(theirs, mutation, model_signing(at, keys))
    return {**told, "kinds": kinds, "model-signing's own command": theirs}


def _count(theirs: dict[str, Any], mutation: Mutation, refused: bool) -> None:
    if refused:
        theirs["refused"] += 1
    elif mutation.others:
        theirs["accepted"].append(f"{mutation.kind}: {mutation.name}")
    else:
        theirs["accepted as meant"] += 1


def fresh(bundle: Path, work: Path) -> Path:
    """A copy to spoil."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    return Path(shutil.copytree(bundle, work / bundle.name))


def verify(bundle: Path, keys: dict[str, Pair]) -> tuple[int, str]:
    """`planish verify` on a bundle: exit code, and what went wrong beyond it ("" when nothing did)."""
    from typer.testing import CliRunner

    from planish.cli.app import app

    ask = ["verify", str(bundle), "--key", str(keys["maker"].public), "--evidence-key", str(keys["phone"].public)]
    try:
        done = CliRunner().invoke(app, [*ask, "--no-run", "--quiet"], prog_name="planish", catch_exceptions=False)
    except Exception as error:  # whatever it is, it is what this looks for
        return -1, f"{type(error).__name__}: {error}"
    lines = [
        line.split(":")[0] for line in done.stderr.splitlines() if line.startswith(("error: ", "where: ", "hint: "))
    ]
    if done.exit_code and lines != ["error", "where", "hint"]:
        return done.exit_code, f"no three lines: {done.stderr[:200]}"
    return done.exit_code, ""


def model_signing(bundle: Path, keys: dict[str, Pair]) -> bool:
    """Whether model-signing's own command refuses the bundle."""
    from click.testing import CliRunner
    from model_signing._cli import main as command

    ask = ["verify", "key", str(bundle), "--signature", str(bundle / SIGNATURE)]
    ask += ["--public_key", str(keys["maker"].public)]
    return CliRunner().invoke(command, ask).exit_code != 0


def packed(bundle: Path, keys: dict[str, Pair], work: Path, every: int, seed: int) -> dict[str, Any]:
    """Bits of the packed form, one after the other: all headers, and random places of the contents."""
    import random

    from planish.bundle.pack import pack_bundle

    archive = pack_bundle(bundle, work / "bundle.planish.zip").path
    data = archive.read_bytes()
    chance = random.Random(seed)
    headers = [at for at in range(len(data)) if data[at : at + 4] in (b"PK\3\4", b"PK\1\2", b"PK\5\6")]
    places = {at + i for at in headers for i in range(46) if at + i < len(data)}
    places |= {chance.randrange(len(data)) for _ in range(500)}
    told: dict[str, Any] = {"attempts": 0, "not refused": []}
    for place in sorted(places)[::every]:
        spoiled = bytearray(data)
        spoiled[place] ^= 1 << chance.randrange(8)
        archive.write_bytes(spoiled)
        code, crash = verify(archive, keys)
        told["attempts"] += 1
        if crash or code not in (1, 3):
            told["not refused"].append(f"byte {place}: {code} {crash}")
    return told


def tell(found: dict[str, Any]) -> None:
    """Print the counts for people."""
    print(f"{found['attempts']} attempts in {found['seconds']} s; exit codes {dict(found['exit codes'])}")
    for kind, count in sorted(found["kinds"].items()):
        print(f"  {count:5} {kind}")
    print(f"  {found['packed bits']['attempts']:5} bits of the packed form")
    for key in ("not refused", "crashed"):
        print(f"{key}: {len(found[key])}")
        print("".join(f"  {name}\n" for name in found[key][:40]), end="")
    print("".join(f"  packed, {name}\n" for name in found["packed bits"]["not refused"][:40]), end="")
    theirs = found["model-signing's own command"]
    print(
        f"model-signing's own command: {theirs['refused']} refused, {theirs['accepted as meant']} are not its to refuse"
    )
    print("".join(f"  accepted {name}\n" for name in theirs["accepted"][:40]), end="")


if __name__ == "__main__":
    sys.exit(main())
