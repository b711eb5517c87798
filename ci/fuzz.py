"""Fuzz every file that planish reads from strangers: a clear error, or a value, and never a traceback.

    python ci/fuzz.py                   about 30000 files, some minutes
    python ci/fuzz.py --scale 0.1       a tenth
    python ci/fuzz.py --seed 7 --json

Exit code 1 when any reader answered with anything but a value or an error that says what, where and what to do.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import fuzzing
from bundles import compiled, key_pair, model_folder, runner


def main() -> int:
    """Run all fuzzers and print the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the whole run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="counts as JSON")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="planish-fuzz-") as scratch:
        found = run(Path(scratch), asked.scale, asked.seed)
    faults = [fault for outcomes, _ in found.values() for fault in outcomes.faults]
    if asked.json:
        rows = {
            n: {"read": o.read, "refused": o.refused, "faults": o.faults, "seconds": s} for n, (o, s) in found.items()
        }
        print(json.dumps(rows, indent=1))
    else:
        for name, (outcomes, seconds) in found.items():
            counts = f"{outcomes.total:6} asked, {outcomes.refused:6} refused, {outcomes.read:5} read"
            print(f"{name:12} {counts}, {len(outcomes.faults)} faults, {seconds:.0f} s")
        print("".join(f"{fault}\n" for fault in faults[:40]), end="")
    return int(bool(faults))


def run(root: Path, scale: float, seed: int) -> dict[str, tuple[fuzzing.Outcomes, float]]:
    """Outcomes and seconds of each fuzzer."""
    from planish.bundle import write_bundle
    from planish.trust.check import Trusted
    from planish.trust.evidence import attest
    from planish.trust.keys import public_key
    from planish.trust.sign import KeySigner, sign_bundle
    from planish.verify.lowering import Execution

    keys = key_pair(root, "maker")
    bundle = write_bundle(compiled(model_folder(root / "model"), root / "work", fine=True), root / "x.planish")
    sign_bundle(bundle, KeySigner(keys.private))
    signing, execution = KeySigner(keys.private), Execution(commands={"coreml": runner(root)})
    attest(bundle, "coreml", signing, root / "result", execution, keep_failed=False)
    trusted = Trusted((public_key(keys.public),))
    unsigned = Path(shutil.copytree(bundle, root / "unsigned.planish"))
    (unsigned / "model.sig").unlink()
    whole: dict[str, tuple[int, Callable[[int], fuzzing.Outcomes]]] = {
        "requests": (8000, lambda n: fuzzing.fuzz_requests(root, n, seed)),
        "manifests": (8000, lambda n: fuzzing.fuzz_manifests(unsigned, n, seed)),
        "policies": (4000, lambda n: fuzzing.fuzz_policies(root, keys.public.read_bytes(), n, seed)),
        "signatures": (4000, lambda n: fuzzing.fuzz_signatures(bundle, trusted, n, seed)),
        "archives": (3000, lambda n: fuzzing.fuzz_archives(bundle, root, n, seed)),
        "results": (3000, lambda n: fuzzing.fuzz_results(bundle, root / "result", n, seed)),
        "golden": (1500, lambda n: fuzzing.fuzz_golden(unsigned, n, seed)),
    }
    found = {}
    for name, (count, fuzz) in whole.items():
        began = time.monotonic()
        found[name] = (fuzz(max(1, round(count * scale))), time.monotonic() - began)
    return found


if __name__ == "__main__":
    sys.exit(main())
