"""One folder with every artifact, what an app needs beside it, and the evidence. See docs/bundle-format.md."""

from planish.bundle.manifest import Manifest
from planish.bundle.read import Bundle, open_bundle
from planish.bundle.verdicts import verdict_from_json, verdict_to_json
from planish.bundle.write import write_bundle

__all__ = ["Bundle", "Manifest", "open_bundle", "verdict_from_json", "verdict_to_json", "write_bundle"]
