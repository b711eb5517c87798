"""Core AI: the .aimodel of iOS 27 and macOS 27, converted by Apple's coreai-torch, run on the CPU by coreai-core."""

from planish_targets.coreai.target import CoreAITarget

TARGET = CoreAITarget()
