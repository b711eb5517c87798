"""Program to program: the shared IR, its composite operators and the passes over it."""

from planish_passes.errors import PlanishError
from planish_passes.program import Port, Program
from planish_passes.weights import QuantizedTensor, TensorSpec, WeightFormat, WeightStore

__all__ = ["PlanishError", "Port", "Program", "QuantizedTensor", "TensorSpec", "WeightFormat", "WeightStore"]
