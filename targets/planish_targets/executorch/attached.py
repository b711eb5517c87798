"""The .ptd file that belongs to a .pte: recorded when both are written, checked before a runtime opens them.

A runtime that misses a constant, or is given another one of the same size, crashes or computes something else.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from planish_passes.errors import PlanishError
from planish_targets.executorch.ptd import SUFFIX, check_head
from planish_targets.serve import Call

_BLOCK, _BLOCKS = 4096, 64


def recorded_data(path: Path) -> dict[str, object]:
    """{"data": {"file", "bytes", "sample"}} of the file beside a .pte; {} when there is none."""
    data = path.with_suffix(SUFFIX)
    if not data.is_file():
        return {}
    return {"data": {"file": data.name, "bytes": data.stat().st_size, "sample": sample(data)}}


def attached(call: Call) -> Path | None:
    """The .ptd file that a runtime must be given; None when the program needs none.

    Raises:
        PlanishError: it is not there, not whole, or not the one that the program was written with.
    """
    record = call.options.get("data")
    if not isinstance(record, dict):
        return None
    path = call.path.with_name(Path(str(record["file"])).name)
    check_head(path)
    if (path.stat().st_size, sample(path)) != (record["bytes"], record["sample"]):
        raise PlanishError(
            f"{path.name} is not the file that {call.path.name} was written with: its contents are others",
            str(path),
            "it was changed, or belongs to another model: copy it again, or compile the model again",
        )
    return path


def sample(path: Path) -> str:
    """SHA-256 of the table of contents, whose names are hashes of delegates' weights, and of 64 blocks from all over.

    All bytes would be most of the time that loading takes, and would warm the page cache of a load that is measured
    cold. A single changed bit is seen by the manifest's hashes (`planish verify`).
    """
    at, length, _ = check_head(path)
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(at + length))
        size = path.stat().st_size
        for block in range(_BLOCKS):
            file.seek(max(size - _BLOCK, 0) * block // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()
