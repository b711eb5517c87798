"""Help, version, exit codes and start-up time of the root command."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

COMMANDS = [
    "compile",
    "verify",
    "sign",
    "attest",
    "accept",
    "pack",
    "unpack",
    "inspect",
    "targets",
    "doctor",
    "explain",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(run: Any, command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"    planish {command}" in result.stdout
    assert "3    a gate failed" in result.stdout
    assert "--json" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_bare(run: Any) -> None:
    result = run()
    assert result.exit_code == 2
    assert all(f"  {command} " in result.stdout for command in COMMANDS)


def test_version(run: Any) -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout.split()[0]) == (0, "planish")


def test_unknown_command(run: Any, told: Any) -> None:
    result = run("compil", "--json")
    assert result.exit_code == 2
    assert "Did you mean 'compile'" in told(result)[0]
    assert json.loads(result.stdout)["error"]["hint"] == "planish --help"


@pytest.mark.parametrize("args", [["--help"], ["compile", "--help"], ["compile", "--nope"], ["compile"]])
def test_nothing_heavy_is_imported(args: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['planish', *{args!r}]\n"
        "from planish.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'rich.table') if m in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_environment(), check=True)
    assert done.stderr.splitlines()[-1] == "[]", done.stderr


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
