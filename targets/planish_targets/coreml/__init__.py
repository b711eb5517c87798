"""Core ML target (.mlpackage)."""

from planish_targets.coreml.target import CoreMLTarget

TARGET = CoreMLTarget()

__all__ = ["TARGET", "CoreMLTarget"]
