"""CPUs to emulate, and the files by which a process finds out what it runs on.

QEMU's user mode tells a process its instruction sets (AT_HWCAP), but passes /proc and /sys through from the host. The
library that XNNPACK asks (cpuinfo) then reads an x86 CPU, and crashes: its list of cores stays empty. QEMU opens a file
below its prefix instead of the host's when there is one, so each CPU has a prefix of its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cpu:
    """A CPU.

    Args:
        model: what QEMU calls it (-cpu).
        midr: its Main ID Register, as a process reads it from that model.
        summary: what XNNPACK computes with on it.
        since: first major version of QEMU that computes it right.
    """

    model: str
    midr: int
    summary: str
    since: int = 7


# Which instructions XNNPACK's kernels are made of was read from QEMU's log of what it translated (-d in_asm).
# QEMU 7.2.22 computes other numbers with SME than 10.0.13, whose are right (docs/decisions/0015).
CPUS = {
    "cortex-a76": Cpu("cortex-a76", 0x414FD0B1, "a phone's core: 8-bit dot products (SDOT)"),
    "i8mm": Cpu("max,sve=off,sme=off", 0x000F0510, "a newer one: 8-bit matrix products (SMMLA)"),
    "sme": Cpu("max", 0x000F0510, "matrices in SME (SMOPA, FMOPA), KleidiAI's kernels; QEMU 10 or newer", since=10),
}
DEFAULT = "cortex-a76"


def write_prefixes(root: Path) -> None:
    """Write `cpu/<name>` below the root for every CPU: links to the root's libraries, and files about the CPU."""
    count = os.cpu_count() or 1
    for name, cpu in CPUS.items():
        prefix = root / "cpu" / name
        system = prefix / "sys/devices/system/cpu"
        system.mkdir(parents=True)
        for shared in ("lib", "usr"):
            (prefix / shared).symlink_to(Path("../..", shared))
        (prefix / "proc").mkdir()
        (prefix / "proc/cpuinfo").write_text("\n".join(_core(i, cpu.midr) for i in range(count)))
        for which in ("possible", "present"):
            (system / which).write_text(f"0-{count - 1}\n" if count > 1 else "0\n")
        for i in range(count):
            register = system / f"cpu{i}/regs/identification/midr_el1"
            register.parent.mkdir(parents=True)
            register.write_text(f"0x{cpu.midr:016x}\n")


def _core(index: int, midr: int) -> str:
    """One core of /proc/cpuinfo; the fields of the register are those of the Arm ARM, D19.2 (MIDR_EL1)."""
    return (
        f"processor\t: {index}\n"
        f"CPU implementer\t: 0x{midr >> 24:02x}\n"
        "CPU architecture: 8\n"
        f"CPU variant\t: 0x{midr >> 20 & 0xF:x}\n"
        f"CPU part\t: 0x{midr >> 4 & 0xFFF:03x}\n"
        f"CPU revision\t: {midr & 0xF}\n"
    )
