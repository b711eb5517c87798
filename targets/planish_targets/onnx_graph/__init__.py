"""ONNX as a form, shared by the targets that run it: translation, clean-up, lazily written weights."""
