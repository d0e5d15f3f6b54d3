package ai.solrt;

import java.nio.charset.StandardCharsets;
import java.util.Arrays;

/**
 * The functions of sol_rt_jni.cc, one for each function of sol_rt.h. Strings cross as UTF-8 that ends in NUL, since JNI's own strings are not UTF-8. Structs
 * come back as {@code double[]} in the order of their numeric fields, with their strings in {@code byte[][]}.
 */
final class SolNative {
  static {
    // A desktop program may name the file; Android finds the library by its name.
    String file = System.getProperty("ai.solrt.library");
    if (file != null) System.load(file);
    else System.loadLibrary("sol_rt_jni");
  }

  private SolNative() {}

  static native String version();

  static native long runtimeCreate(byte[] ortLibrary, int threads, int nativeOperators, int spin);
  static native void runtimeRelease(long runtime);
  static native String runtimeOrtVersion(long runtime);

  static native long modelLoad(long runtime, byte[] folder, int verify, int maxContext, byte[] costTable, byte[] prefill, int costs, byte[] costsFolder,
                               SolModel.Progress progress);
  static native void modelRelease(long model);
  static native double[] modelInfo(long model, byte[][] strings);
  static native double[] modelAction(long model, int index, byte[][] strings);
  static native void modelMeasureCosts(long model, byte[] file);
  static native void modelSetCosts(long model, byte[] table);
  static native int[] modelEncode(long model, byte[] text, int flags);
  static native byte[] modelDecode(long model, int[] tokens, boolean skipSpecial);
  static native int[] modelEncodeChat(long model, byte[][] rolesAndContents);

  static native long sessionCreate(long model);
  static native void sessionRelease(long session);
  static native int[] sessionTokens(long session);
  static native void sessionRewind(long session, long length);
  static native void sessionSave(long session, byte[] file);
  static native void sessionRestore(long session, byte[] file);
  static native long sessionPrivateBytes(long session);
  /** {@code options}: {@link GenerateOptions#parts}. */
  static native void sessionStart(long session, int[] prompt, Object[] options);
  /** {@code schedule}: that of the options at the start, or null. */
  static native double[] sessionNext(long session, byte[][] strings, SolSchedule schedule);
  static native void sessionStop(long session);
  static native double[] sessionResult(long session, byte[][] strings);
  /** Fills {@code logits} and {@code hidden} with the results of the last token. */
  static native void sessionForward(long session, int[] tokens, byte[] action, float[] logits, float[] hidden);
  /** Fills the arrays; {@code strings} with the schedule and the actions. */
  static native double[] sessionScore(long session, int[] tokens, int context, Object[] options, SolSchedule schedule, double[] logprobs, double[] costs,
                                      byte[][] strings);
  static native void sessionCancel(long session);
  static native void sessionSetBudget(long session, double budget);
  static native void sessionSetTokensPerSecond(long session, double rate);
  static native boolean sessionBusy(long session);

  static native void governorBegin(double[] settings, double[] state);
  static native void governorStep(double[] settings, double battery, int charging, double thermal, double tokensPerSecond, double[] state);

  /** UTF-8 and NUL; null for null. */
  static byte[] utf8(String text) {
    if (text == null) return null;
    if (text.indexOf('\0') >= 0) throw new SolException.Usage("a string contains the character U+0000: remove it");
    return utf8OfAny(text);
  }

  /** UTF-8 of any text, and NUL. Half a surrogate pair becomes a question mark. */
  static byte[] utf8OfAny(String text) {
    byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
    return Arrays.copyOf(bytes, bytes.length + 1);
  }

  /** Null for null. */
  static byte[][] utf8(String... texts) {
    if (texts == null) return null;
    byte[][] all = new byte[texts.length][];
    for (int i = 0; i < texts.length; i++) all[i] = utf8(texts[i]);
    return all;
  }

  /** Called by the native library. */
  static int choose(SolSchedule schedule, double[] numbers, byte[][] actions, double[] costs, byte[] allowed, float[] hidden) {
    return schedule.choose(new SolSchedule.Choice(numbers, actions, costs, allowed, hidden));
  }

  /** The strings from {@code first} on. */
  static String[] strings(byte[][] utf8, int first) {
    String[] texts = new String[utf8.length - first];
    for (int i = 0; i < texts.length; i++) texts[i] = string(utf8[first + i]);
    return texts;
  }

  static String string(byte[] utf8) {
    return utf8 == null ? null : new String(utf8, StandardCharsets.UTF_8);
  }
}
