"""A reference interpreter for saved Core ML packages (.mlpackage, ML programs), on any platform.

It reads the package's own files (specification and weight blobs), decodes compressed weights and
evaluates the program with torch, one function for each MIL operation.
"""

from planish_targets.coreml.mil.errors import CorruptPackage, MilRunError, UnsupportedMilOp
from planish_targets.coreml.mil.execute import Decoded, Precision, Tap
from planish_targets.coreml.mil.program import MilOperation, MilOutput, MilPort, MilProgram, functions, load
from planish_targets.coreml.mil.quantized import QuantizedBlob

__all__ = [
    "CorruptPackage",
    "Decoded",
    "MilOperation",
    "MilOutput",
    "MilPort",
    "MilProgram",
    "MilRunError",
    "Precision",
    "QuantizedBlob",
    "Tap",
    "UnsupportedMilOp",
    "functions",
    "load",
]
