"""The JSON Schema of manifest.json, as published in docs/: `python -m planish.bundle.schema > docs/...`."""

from __future__ import annotations

import json

from planish.bundle.manifest import Manifest


def schema_text() -> str:
    """The published text, byte for byte."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Manifest.model_json_schema()}
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
