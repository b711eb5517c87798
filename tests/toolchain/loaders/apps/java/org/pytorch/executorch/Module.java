package org.pytorch.executorch;

/** Public names of ExecuTorch's Android library, to compile against; nothing is behind them. */
public class Module {
  public static Module load(String path) {
    throw new UnsupportedOperationException();
  }

  public EValue[] forward(EValue... inputs) {
    throw new UnsupportedOperationException();
  }

  public void destroy() {}
}
