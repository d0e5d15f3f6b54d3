package ai.solrt;

/** ONNX Runtime, as the program ships it. One for the whole program is enough; any number of threads may use it. */
public final class SolRuntime extends SolHandle {
  /** Fields may be set before {@link #open(Options)}. */
  public static final class Options {
    /** Path or name of ONNX Runtime's shared library; null for the system's usual name, as {@code libonnxruntime.so}. */
    public String ortLibrary;
    /** Threads of ONNX Runtime's pool; 0 for as many as help. */
    public int threads;
    /** False: runs the function bodies in the graphs, not the native operators. */
    public boolean nativeOperators = true;
    /** True: waiting threads spin, as is ONNX Runtime's default. False lets them sleep, which saves battery. */
    public boolean spin = true;
  }

  private SolRuntime(long pointer) {
    super(pointer, SolNative::runtimeRelease);
  }

  /** Opens ONNX Runtime under its usual name: on Android that of the app's own library. */
  public static SolRuntime open() {
    return open(new Options());
  }

  public static SolRuntime open(String ortLibrary) {
    Options options = new Options();
    options.ortLibrary = ortLibrary;
    return open(options);
  }

  /** Throws {@link SolException.Runtime} where ONNX Runtime is missing or too old. */
  public static SolRuntime open(Options options) {
    return new SolRuntime(SolNative.runtimeCreate(SolNative.utf8(options.ortLibrary), options.threads, options.nativeOperators ? 1 : 0, options.spin ? 1 : 0));
  }

  /** Version of ONNX Runtime, as "1.23.0". */
  public String ortVersion() {
    return call(SolNative::runtimeOrtVersion);
  }

  /** Version of sol_rt, as "0.1.0". */
  public static String version() {
    return SolNative.version();
  }
}
