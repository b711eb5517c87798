"""The command: `--setup`, or a runner (IN OUT)."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import planish_passes
import planish_targets
from planish_passes.errors import PlanishError
from planish_targets.contract import Evidence
from planish_targets.executorch.arm64.cpus import CPUS, DEFAULT, Cpu
from planish_targets.executorch.arm64.root import TOOLS, interpreter, location, made, make, qemu, site

_EMULATORS_OWN = ("seconds", "load_seconds", "peak_rss_bytes", "start_rss_bytes")  # they say nothing of an arm64 CPU
_PASSED_ON = ("HOME", "LANG", "OMP_NUM_THREADS", "PYTHONFAULTHANDLER", "TMPDIR")
_USAGE = """\
Run a .pte with ExecuTorch's arm64 wheel on an emulated CPU (docs/runner-protocol.md). Once:

  apt-get install qemu-user-static binutils-aarch64-linux-gnu
  python -m planish_targets.executorch.arm64 --setup

then, as a runner of planish:

  planish verify BUNDLE -t executorch --timeout 3600 \\
    --runner executorch="python -m planish_targets.executorch.arm64"

CPUs:
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    try:
        if asked.setup:
            make(location(), _prove, asked.mirror)
            print(f"arm64 is set up in {location()}")
            return
        if len(asked.folders) != 2:
            parser.error("name the folders IN and OUT, or --setup")
        code = answer(asked.folders[0], asked.folders[1], CPUS[asked.cpu], location() / "cpu" / asked.cpu)
    except PlanishError as problem:
        if len(asked.folders) == 2:
            report = {"what": problem.what, "where": problem.where, "hint": problem.hint}
            (asked.folders[1] / "error.json").write_text(json.dumps(report))
        sys.exit(f"error: {problem}")
    if code < 0:  # planish tells a crash by its signal
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def answer(given: Path, returned: Path, cpu: Cpu, prefix: Path) -> int:
    """Run planish's ExecuTorch runner inside the root, and say in its answer what computed.

    Args:
        given, returned: the folders of the runner protocol.
        cpu: what to emulate.
        prefix: its folder in the root.

    Returns:
        Exit code of the emulated process, negative for a signal.

    Raises:
        PlanishError: the root is not set up; QEMU is not installed, or too old for this CPU.
    """
    root = prefix.parents[1]
    about, version = made(root), _version()
    if int(version.partition(".")[0]) < cpu.since:
        what = f"QEMU {version} computes wrong numbers as {cpu.model}"
        raise PlanishError(what, qemu(), f"install QEMU {cpu.since} or newer, or name another --cpu")
    module = ["-m", "planish_targets.executorch.run", str(given.resolve()), str(returned.resolve())]
    done = _emulated(root, cpu, prefix, module)
    if done.returncode == 0:
        path = returned / "device.json"
        path.write_text(json.dumps(stated(json.loads(path.read_text()), cpu, version, about), indent=1))
    return done.returncode


def stated(told: Mapping[str, object], cpu: Cpu, version: str, about: Mapping[str, object]) -> dict[str, object]:
    """A device.json of the emulated runner, as the answer of this one: its grade, and without the emulator's times."""
    versions, debian = told.get("versions"), about.get("debian")
    assert isinstance(versions, dict)
    assert isinstance(debian, dict)
    return {
        **{k: v for k, v in told.items() if k not in _EMULATORS_OWN},
        "device": f"{told['device']}, emulated by QEMU {version} as {cpu.model}",
        "versions": {**versions, "qemu": version, **{f"debian {n}": v for n, v in debian.items() if n == "libc6"}},
        "evidence": str(Evidence.EXECUTED_ARM64_EMULATED),
    }


def _prove(root: Path, source: str) -> None:
    done = _emulated(root, CPUS[DEFAULT], root / "cpu" / DEFAULT, ["-c", source], {"PYTHONDONTWRITEBYTECODE": ""})
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        what = f"the emulated Python cannot load ExecuTorch: {said[-1] if said else f'exit code {done.returncode}'}"
        raise PlanishError(what, str(root), "run it with --setup again, or report it with the output of qemu --version")


def _emulated(
    root: Path, cpu: Cpu, prefix: Path, words: Sequence[str], more: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    # Links: the host's site-packages, where planish may be, holds packages for the host's CPU.
    with tempfile.TemporaryDirectory(prefix="planish-arm64-") as sources:
        for package in (planish_passes, planish_targets):
            folder = Path(next(iter(package.__path__)))
            Path(sources, folder.name).symlink_to(folder, target_is_directory=True)
        env = {name: value for name in _PASSED_ON if (value := os.environ.get(name))}
        env |= {"QEMU_LD_PREFIX": str(prefix), "PYTHONPATH": f"{sources}{os.pathsep}{site(root)}"}
        env |= {"PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1", **(more or {})}
        command = [qemu(), "-cpu", cpu.model, str(interpreter(root)), *words]
        done = subprocess.run(command, env=env, stderr=subprocess.PIPE, check=False)
    sys.stderr.buffer.write(done.stderr)
    return done


def _version() -> str:
    told = subprocess.run([qemu(), "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\d+\.\d+[.\d]*)", told)
    if found is None:
        raise PlanishError("QEMU does not tell its version", qemu(), TOOLS)
    return found[1]


def _parser() -> argparse.ArgumentParser:
    about = _USAGE + "".join(f"  {name:11} {cpu.summary}\n" for name, cpu in CPUS.items())
    parser = argparse.ArgumentParser(
        "python -m planish_targets.executorch.arm64",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", type=Path, nargs="*", metavar="IN OUT", help="folders of the runner protocol")
    parser.add_argument("--cpu", choices=CPUS, default=DEFAULT, help=f"what to emulate [default: {DEFAULT}]")
    parser.add_argument("--setup", action="store_true", help="make the arm64 root in the user's cache (fetches 480 MB)")
    parser.add_argument("--mirror", default="", metavar="URL", help="with --setup: mirror of Debian [default: apt's]")
    return parser


if __name__ == "__main__":
    main()
