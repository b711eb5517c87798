"""ONNX Runtime on phones and desktops: .onnx with external weights, .ort and the operator list for a reduced build."""

from planish_targets.onnxruntime.target import OnnxRuntimeTarget

TARGET = OnnxRuntimeTarget()
