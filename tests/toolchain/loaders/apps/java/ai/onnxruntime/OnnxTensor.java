package ai.onnxruntime;

import java.nio.FloatBuffer;
import java.nio.IntBuffer;
import java.nio.LongBuffer;

public class OnnxTensor extends OnnxTensorLike {
  final TensorInfo info;
  final long[] integers;
  final float[] floats;
  private boolean closed;

  OnnxTensor(OnnxJavaType type, long[] shape, long[] integers, float[] floats) {
    this.info = new TensorInfo(type, shape);
    this.integers = integers;
    this.floats = floats;
    long count = 1;
    for (long size : shape) count *= size;
    if (count != integers.length + floats.length) throw new IllegalStateException("values do not fit the shape");
  }

  public static OnnxTensor createTensor(OrtEnvironment environment, LongBuffer data, long[] shape) throws OrtException {
    long[] values = new long[data.remaining()];
    data.get(values);
    return new OnnxTensor(OnnxJavaType.INT64, shape, values, new float[0]);
  }

  public static OnnxTensor createTensor(OrtEnvironment environment, IntBuffer data, long[] shape) throws OrtException {
    long[] values = new long[data.remaining()];
    for (int i = 0; i < values.length; i++) values[i] = data.get();
    return new OnnxTensor(OnnxJavaType.INT32, shape, values, new float[0]);
  }

  public static OnnxTensor createTensor(OrtEnvironment environment, FloatBuffer data, long[] shape) throws OrtException {
    float[] values = new float[data.remaining()];
    data.get(values);
    return new OnnxTensor(OnnxJavaType.FLOAT, shape, new long[0], values);
  }

  @Override
  public TensorInfo getInfo() {
    return info;
  }

  public FloatBuffer getFloatBuffer() {
    open();
    return FloatBuffer.wrap(floats);
  }

  public LongBuffer getLongBuffer() {
    open();
    return LongBuffer.wrap(integers);
  }

  /** As the real one, it cannot be used when it, or the result that it came with, is closed. */
  void open() {
    if (closed) throw new IllegalStateException("a closed tensor is used");
  }

  @Override
  public void close() {
    closed = true;
  }
}
