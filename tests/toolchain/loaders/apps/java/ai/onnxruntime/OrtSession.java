package ai.onnxruntime;

import java.io.BufferedOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Optional;

public class OrtSession implements AutoCloseable {
  private final Process process;
  private final DataOutputStream out;
  private final DataInputStream in;
  private final Map<String, NodeInfo> inputs = new LinkedHashMap<>();

  public static class SessionOptions implements AutoCloseable {
    @Override
    public void close() {}
  }

  public static class Result implements AutoCloseable, Iterable<Map.Entry<String, OnnxValue>> {
    private final Map<String, OnnxValue> values;

    Result(Map<String, OnnxValue> values) {
      this.values = values;
    }

    public Optional<OnnxValue> get(String name) {
      return Optional.ofNullable(values.get(name));
    }

    @Override
    public Iterator<Map.Entry<String, OnnxValue>> iterator() {
      return values.entrySet().iterator();
    }

    @Override
    public void close() {
      values.values().forEach(OnnxValue::close);
    }
  }

  OrtSession(String path) throws OrtException {
    try {
      process = new ProcessBuilder(System.getProperty("python"), System.getProperty("runtime"), path)
          .redirectError(ProcessBuilder.Redirect.INHERIT).start();
      out = new DataOutputStream(new BufferedOutputStream(process.getOutputStream()));
      in = new DataInputStream(process.getInputStream());
      for (int left = in.readInt(); left > 0; left--) {
        inputs.put(in.readUTF(), new NodeInfo(new TensorInfo(OnnxJavaType.valueOf(in.readUTF()), new long[0])));
      }
    } catch (IOException problem) {
      throw new OrtException(problem.toString());
    }
  }

  public Map<String, NodeInfo> getInputInfo() throws OrtException {
    return inputs;
  }

  public Result run(Map<String, ? extends OnnxTensorLike> given) throws OrtException {
    try {
      out.writeInt(given.size());
      for (Map.Entry<String, ? extends OnnxTensorLike> entry : given.entrySet()) {
        OnnxTensor tensor = (OnnxTensor) entry.getValue();
        tensor.open();
        out.writeUTF(entry.getKey());
        out.writeUTF(tensor.info.type.name());
        out.writeInt(tensor.info.shape.length);
        for (long size : tensor.info.shape) out.writeLong(size);
        for (long value : tensor.integers) out.writeLong(value);
        for (float value : tensor.floats) out.writeFloat(value);
      }
      out.flush();
      Map<String, OnnxValue> made = new LinkedHashMap<>();
      for (int left = in.readInt(); left > 0; left--) {
        String name = in.readUTF();
        long[] shape = new long[in.readInt()];
        int count = 1;
        for (int i = 0; i < shape.length; i++) count *= (int) (shape[i] = in.readLong());
        float[] values = new float[count];
        for (int i = 0; i < count; i++) values[i] = in.readFloat();
        made.put(name, new OnnxTensor(OnnxJavaType.FLOAT, shape, new long[0], values));
      }
      return new Result(made);
    } catch (IOException problem) {
      throw new OrtException(problem.toString());
    }
  }

  @Override
  public void close() throws OrtException {
    process.destroy();
  }
}
