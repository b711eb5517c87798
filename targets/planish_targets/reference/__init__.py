"""The program itself, saved by torch: what every other artifact is compared with, as an artifact of its own."""

from planish_targets.reference.target import ReferenceTarget

TARGET = ReferenceTarget()
