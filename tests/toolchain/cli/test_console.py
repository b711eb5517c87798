"""Where output goes, and JSON of odd values."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from planish.cli.console import emit_json, plain, results_only
from planish_passes.errors import PlanishError
from planish_targets.contract import Evidence


def test_plain() -> None:
    odd = {"n": float("nan"), "i": -float("inf"), "e": Evidence.EXECUTED, "p": Path("a"), "s": {3, 1}, "t": (1, None)}
    assert plain(odd) == {"n": "NaN", "i": "-Infinity", "e": "executed", "p": "a", "s": [1, 3], "t": [1, None]}
    assert plain(PlanishError("a", "b", "c")) == {"what": "a", "where": "b", "hint": "c"}
    with pytest.raises(TypeError):
        plain(object())


def test_surrogates_of_odd_paths_are_valid_json(capsys: pytest.CaptureFixture[str]) -> None:
    emit_json({"path": "\udcff"})
    assert json.loads(capsys.readouterr().out) == {"path": "\udcff"}


def test_libraries_do_not_reach_stdout() -> None:
    code = (
        "import ctypes, os\n"
        "from planish.cli.console import results_only\n"
        "with results_only():\n"
        "    print('python')\n"
        "    os.write(1, b'native')\n"
        "    ctypes.CDLL(None).puts(b'buffered')\n"
        "print('result')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    environment.pop("PYTHONUNBUFFERED", None)  # it makes native output unbuffered, too
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "result\n"
    assert all(word in done.stderr for word in ("python", "native", "buffered"))


def test_warnings_are_dropped_and_come_back(caplog: pytest.LogCaptureFixture) -> None:
    with results_only():
        logging.getLogger("torch").warning("hidden")
        warnings.warn("hidden", stacklevel=1)
    logging.getLogger("torch").warning("shown")
    assert [r.message for r in caplog.records] == ["shown"]
