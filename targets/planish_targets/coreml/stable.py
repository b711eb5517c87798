"""A package whose bytes follow from its contents.

coremltools names the items of a package by random UUIDs, and protobuf writes maps in an order that differs from process
to process. Both are written once more, in an order and with names that do not.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path

_ITEMS, _ROOT = "itemInfoEntries", "rootModelIdentifier"


def stabilise(package: Path) -> None:
    """Rewrite Manifest.json and the model's specification; nothing that they say changes."""
    from coremltools.proto import Model_pb2

    manifest = json.loads((package / "Manifest.json").read_text())
    names = {old: str(uuid.uuid5(uuid.NAMESPACE_URL, item["path"])) for old, item in manifest[_ITEMS].items()}
    root = manifest[_ITEMS][manifest[_ROOT]]["path"]
    manifest[_ITEMS] = {names[old]: item for old, item in manifest[_ITEMS].items()}
    manifest[_ROOT] = names[manifest[_ROOT]]
    (package / "Manifest.json").write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n")
    path = package / "Data" / root
    model = Model_pb2.Model()
    model.ParseFromString(path.read_bytes())
    path.write_bytes(model.SerializeToString(deterministic=True))
