"""Emitters: ATen and planish operators to MIL. What has none here goes through coremltools' own converters."""

from planish_targets.coreml.emit import elementwise, indexing, network, shapes  # noqa: F401  (for their registrations)
from planish_targets.coreml.emit.emitter import OPS, Emitter

__all__ = ["OPS", "Emitter"]
