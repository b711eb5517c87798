"""Emitters: ATen and planish operators to MIL. What has none here goes through coremltools' own converters."""

from planish_targets.coreml.emit import (  # noqa: F401  (for their registrations)
    create,
    decoder,
    elementwise,
    indexing,
    network,
    shapes,
)
from planish_targets.coreml.emit.emitter import OPS, Emitter
from planish_targets.coreml.emit.naming import State

__all__ = ["OPS", "Emitter", "State"]
