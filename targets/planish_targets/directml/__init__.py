"""Windows GPUs of any vendor: a float16 .onnx file within the kernels of ONNX Runtime's DirectML provider."""

from planish_targets.directml.target import DirectMLTarget

TARGET = DirectMLTarget()
