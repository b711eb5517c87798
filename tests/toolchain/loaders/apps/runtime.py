"""The real ONNX Runtime behind apps/java/ai/onnxruntime: tensors in and out as Java's data streams write them."""

import struct
import sys

import numpy as np
import onnxruntime

TYPES = {"tensor(int64)": "INT64", "tensor(int32)": "INT32", "tensor(float)": "FLOAT", "tensor(float16)": "FLOAT16"}
DTYPES = {"INT64": np.int64, "INT32": np.int32, "FLOAT": np.float32}
source, sink = sys.stdin.buffer, sys.stdout.buffer


def utf(text: str) -> bytes:
    return struct.pack(">H", len(text)) + text.encode()


def number(form: str) -> int:
    data = source.read(struct.calcsize(form))
    if not data:
        sys.exit()
    return int(struct.unpack(form, data)[0])


def word() -> str:
    return source.read(number(">H")).decode()


session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
sink.write(struct.pack(">i", len(session.get_inputs())))
for port in session.get_inputs():
    sink.write(utf(port.name) + utf(TYPES[port.type]))
sink.flush()
names = [port.name for port in session.get_outputs()]
while True:
    feed = {}
    for _ in range(number(">i")):
        name, kind = word(), word()
        shape = [number(">q") for _ in range(number(">i"))]
        wide = ">f4" if kind == "FLOAT" else ">i8"
        data = source.read(int(np.prod(shape)) * int(wide[-1]))
        feed[name] = np.frombuffer(data, wide).reshape(shape).astype(DTYPES[kind])
    found = session.run(names, feed)
    sink.write(struct.pack(">i", len(found)))
    for name, array in zip(names, found, strict=True):
        sink.write(
            utf(name) + struct.pack(f">i{array.ndim}q", array.ndim, *array.shape) + array.astype(">f4").tobytes()
        )
    sink.flush()
