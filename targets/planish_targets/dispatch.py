"""`planish-run IN OUT`: run whatever artifact the input folder holds, with the runner of its target.

This is what a Windows box, a Mac or a board answers with when a command such as `ssh winbox planish-run` stands in
for the built-in runner.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from planish_passes.errors import PlanishError
from planish_targets import registry
from planish_targets.contract import Artifact, Unavailable


def main() -> None:
    """Entry point of the command."""
    if len(sys.argv) != 3:
        sys.exit("usage: planish-run INPUT_FOLDER OUTPUT_FOLDER   (docs/runner-protocol.md)")
    given, returned = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        call = json.loads((given / "call.json").read_text())
        artifact = Artifact(call["target"], given / "artifact", call["entry"], call["options"])
        runner = registry.find(call["target"]).runner(artifact)
    except (OSError, ValueError, KeyError) as problem:
        sys.exit(f"planish-run: {given}/call.json cannot be read: {problem}")
    except PlanishError as problem:
        sys.exit(f"planish-run: {problem}")
    if isinstance(runner, Unavailable):
        sys.exit(f"planish-run: {runner.reason}")
    returned.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([*runner.command, str(given), str(returned)], check=False)
    if done.returncode == 0:
        _grade(returned / "device.json", runner.evidence)
    sys.exit(done.returncode)


def _grade(path: Path, evidence: str) -> None:
    """Write the grade that this machine's runner earned into its answer."""
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "evidence": str(evidence)}, indent=1))
