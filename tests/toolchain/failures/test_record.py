"""Records lie in the user's cache, one per output; they say when their process was killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from planish.failures import record
from planish.failures.find import find
from planish.failures.record import Record
from planish_passes.errors import PlanishError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def leave(output: Path, **values: object) -> Path:
    """A record as a process leaves it that has ended."""
    begun = record.begin(output)
    assert begun is not None
    folder, lock = begun
    record.write(Record(began="2026-01-01T00:00:00Z", output=str(output), request={}, **values), folder)  # type: ignore[arg-type]
    assert lock is not None
    os.close(lock)
    return folder


def test_round_trip_with_numbers_that_json_lacks(tmp_path: Path) -> None:
    gate = record.FailedGate(target="t", check="c", reason="r", error=float("nan"))
    folder = leave(tmp_path / "m.planish", ended="gate failed", gates=(gate,))
    error = record.read(folder).gates[0].error
    assert error is not None
    assert error != error


def test_one_per_output_and_the_youngest_by_default(tmp_path: Path) -> None:
    first = leave(tmp_path / "a.planish", ended="failed")
    (first / "reduced").mkdir()
    other = leave(tmp_path / "b.planish", ended="failed")
    os.utime(other / record.RECORD, (1, 1))
    assert find(None).record.output == str(tmp_path / "a.planish")
    assert find(tmp_path / "b.planish").folder == other
    assert leave(tmp_path / "a.planish", ended="failed") == first
    assert [p.name for p in first.iterdir()] == [record.RECORD]  # nothing of an earlier failure


def test_a_killed_process_is_told_from_one_that_runs(tmp_path: Path) -> None:
    output = tmp_path / "m.planish"
    ready, say = os.pipe()
    child = os.fork()
    if child == 0:
        begun = record.begin(output)
        assert begun is not None
        record.write(Record(began="now", output=str(output), request={}, stages=(("quantise", ""),)), begun[0])
        os.write(say, b"!")
        signal.pause()
        os._exit(3)
    try:
        assert os.read(ready, 1) == b"!"
        assert record.begin(output) is None  # the record belongs to the other process
        with pytest.raises(PlanishError, match="still runs"):
            find(output)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(say)
    assert (find(output).record.ended, find(output).record.stage) == ("running", "quantise")


def test_old_ones_go(tmp_path: Path) -> None:
    for number in range(record._MOST + 3):
        leave(tmp_path / f"{number}.planish", ended="failed")
    assert len(record.all_folders()) <= record._MOST + 1


def test_nothing_failed(tmp_path: Path) -> None:
    with pytest.raises(PlanishError, match="No compile failed here"):
        find(None)
    leave(tmp_path / "a.planish", ended="failed")
    with pytest.raises(PlanishError, match="No failed compile of that output") as caught:
        find(tmp_path / "b.planish")
    assert "a.planish" in caught.value.hint


def test_a_damaged_record(tmp_path: Path) -> None:
    folder = leave(tmp_path / "a.planish", ended="failed")
    (folder / record.RECORD).write_text("{")
    with pytest.raises(PlanishError, match="cannot be read"):
        find(tmp_path / "a.planish")
