package ai.onnxruntime;

/** Stands in for ONNX Runtime's Java binding, which no registry in reach has: the public names that the loader uses, over a Python process with the real runtime. */
public final class OrtEnvironment {
  private static final OrtEnvironment ONE = new OrtEnvironment();

  public static OrtEnvironment getEnvironment() {
    return ONE;
  }

  public OrtSession createSession(String path, OrtSession.SessionOptions options) throws OrtException {
    return new OrtSession(path);
  }
}
