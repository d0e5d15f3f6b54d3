package ai.solrt;

import java.nio.charset.StandardCharsets;

/** Exception that every call of this package throws. The message is one line: what, where, got, expected, next step. */
public class SolException extends RuntimeException {
  /** The number of the error in sol_rt.h, {@code SOL_ERROR_...}. */
  public final int code;

  SolException(int code, String message) {
    super(message);
    this.code = code;
  }

  /** Called by the native library. */
  static SolException of(int code, byte[] utf8) {
    String message = new String(utf8, StandardCharsets.UTF_8);
    switch (code) {
      case 1: return new Usage(message);
      case 2: return new Bundle(message);
      case 3: return new Runtime(message);
      case 4: return new Context(message);
      case 5: return new Numeric(message);
      case 6: return new Busy(message);
      case 7: return new Cancelled(message);
      case 8: return new Write(message);
      case 9: return new Memory(message);
      case 10: return new Text(message);
      default: return new SolException(code, message);
    }
  }

  /** The call is wrong: a value out of range, options that contradict each other, or an object that is closed. */
  public static final class Usage extends SolException { Usage(String message) { super(1, message); } }

  /** The bundle is missing, truncated, foreign or inconsistent. */
  public static final class Bundle extends SolException { Bundle(String message) { super(2, message); } }

  /** ONNX Runtime is missing, too old, or failed. */
  public static final class Runtime extends SolException { Runtime(String message) { super(3, message); } }

  /** Prompt or text does not fit the context, or the KV cache does not fit the memory. */
  public static final class Context extends SolException { Context(String message) { super(4, message); } }

  /** The model gave numbers that are not finite. */
  public static final class Numeric extends SolException { Numeric(String message) { super(5, message); } }

  /** Another thread is using the session. */
  public static final class Busy extends SolException { Busy(String message) { super(6, message); } }

  /** {@link SolSession#cancel} or {@link SolSession#close} ended the call. */
  public static final class Cancelled extends SolException { Cancelled(String message) { super(7, message); } }

  /** A file cannot be written: the disk is full, or the system refuses. What was there stays as it was. */
  public static final class Write extends SolException { Write(String message) { super(8, message); } }

  /** Out of memory. */
  public static final class Memory extends SolException { Memory(String message) { super(9, message); } }

  /** The text is not valid, or the bundle has no tokenizer or no chat segments that the core can use. */
  public static final class Text extends SolException { Text(String message) { super(10, message); } }
}
