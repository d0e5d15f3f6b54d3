package ai.solrt;

import java.util.Objects;
import java.util.function.LongFunction;

/** A loaded bundle. Any number of threads may use it; its sessions share the weights' memory and may outlive it. */
public final class SolModel extends SolHandle {
  /** Called while a bundle loads. An exception thrown here ends the load and comes out of it. */
  public interface Progress {
    void report(String what, long done, long total);
  }

  /** Costs that a budget is a share of. */
  public enum Costs {
    /** As the environment's {@code SOL_RT_COSTS} says; measured where it says nothing. */
    DEFAULT,
    /** Bytes that a step reads. */
    BYTES,
    /** Milliseconds where {@code sol-rt profile} measured the bundle on this device, else bytes. */
    PROFILED,
    /** Milliseconds. The first load of a bundle measures them, in 2 to 6 s, and keeps them. */
    MEASURED
  }

  /** Fields may be set before {@link #load(SolRuntime, String, Options)}. */
  public static final class Options {
    /** 0: compares no hashes. 1: of every file but the weights. 2: of the weights, too, which takes about a second a gigabyte. */
    public int verify = 1;
    /** A cap in tokens below the model's own; 0 for none. */
    public int maxContext;
    /** A cost table that was measured on this device; null: as {@code costs} says. */
    public String costTable;
    public Costs costs = Costs.DEFAULT;
    /** Folder in which measured costs are kept; null for one of the user's. An Android app names one below {@code getFilesDir()}. */
    public String costsFolder;
    /** Key of the variant that runs prompts, as {@code s100-q4}; null: the dial chooses. */
    public String prefill;
    public Progress progress;
  }

  /** Contents of a bundle. */
  public static final class Info {
    public final String name, generator, identity, defaultSchedule, costModel, dense;
    /** A line about costs of the load for the user, mostly empty. */
    public final String costNote;
    public final int vocabSize, hiddenSize, layers, maxContext, actions;
    public final boolean hasPolicy, hasLosses, hasTokenizer, hasChat, nativeOperators;
    /** Bytes of the weights file, which the system may drop from memory. */
    public final long mappedBytes;

    Info(double[] n, byte[][] s) {
      name = SolNative.string(s[0]); generator = SolNative.string(s[1]); identity = SolNative.string(s[2]);
      defaultSchedule = SolNative.string(s[3]); costModel = SolNative.string(s[4]); dense = SolNative.string(s[5]);
      costNote = SolNative.string(s[6]);
      vocabSize = (int) n[0]; hiddenSize = (int) n[1]; layers = (int) n[2]; maxContext = (int) n[3]; actions = (int) n[4];
      hasPolicy = n[5] != 0; hasLosses = n[6] != 0; hasTokenizer = n[7] != 0; hasChat = n[8] != 0; nativeOperators = n[9] != 0;
      mappedBytes = (long) n[10];
    }
  }

  /** One way to run a decode step. */
  public static final class Action {
    public final String tag;
    /** Cost at a context of 512 tokens, in dense steps. */
    public final double relativeCost;
    /** Nats a token over dense; NaN if not measured. */
    public final double loss;

    Action(double[] n, byte[][] s) {
      tag = SolNative.string(s[0]);
      relativeCost = n[0];
      loss = n[1];
    }
  }

  private SolModel(long pointer) {
    super(pointer, SolNative::modelRelease);
  }

  public static SolModel load(SolRuntime runtime, String folder) {
    return load(runtime, folder, new Options());
  }

  /** Throws {@link SolException.Bundle} where the folder is no bundle, or is damaged. */
  public static SolModel load(SolRuntime runtime, String folder, Options options) {
    Objects.requireNonNull(folder, "folder");
    return new SolModel(runtime.call(r -> SolNative.modelLoad(r, SolNative.utf8(folder), options.verify, options.maxContext,
                                                             SolNative.utf8(options.costTable), SolNative.utf8(options.prefill), options.costs.ordinal(),
                                                             SolNative.utf8(options.costsFolder), options.progress)));
  }

  public Info info() {
    byte[][] strings = new byte[7][];
    return new Info(call(m -> SolNative.modelInfo(m, strings)), strings);
  }

  /** The action set; {@code index} is from 0 to {@code info().actions - 1}. */
  public Action action(int index) {
    byte[][] strings = new byte[1][];
    return new Action(call(m -> SolNative.modelAction(m, index, strings)), strings);
  }

  /**
   * Tries settings of the operators, which then hold for the process, and times every action, for about four seconds. Uses the result from the next
   * generation on, and writes it to {@code file} if that is not null.
   */
  public void measureCosts(String file) {
    call(m -> { SolNative.modelMeasureCosts(m, SolNative.utf8(file)); return null; });
  }

  /**
   * Takes costs from the text of a cost table, from the next generation on; null goes back to bytes. The table may be the app's own. Throws
   * {@link SolException.Bundle} for a text that is no table of this bundle.
   */
  public void setCosts(String table) {
    call(m -> { SolNative.modelSetCosts(m, SolNative.utf8(table)); return null; });
  }

  /** Tokens of {@code text}, with what the model wants around it. Special tokens that are written in the text stay text. */
  public int[] encode(String text) {
    return encode(text, true, false);
  }

  public int[] encode(String text, boolean addSpecial, boolean parseSpecial) {
    return call(m -> SolNative.modelEncode(m, SolNative.utf8OfAny(text), (addSpecial ? 1 : 0) | (parseSpecial ? 2 : 0)));
  }

  public String decode(int[] tokens, boolean skipSpecial) {
    return SolNative.string(call(m -> SolNative.modelDecode(m, tokens, skipSpecial)));
  }

  /** Tokens of a conversation, given as role, content, role, content..., with the beginning of the assistant's answer. */
  public int[] encodeChat(String... rolesAndContents) {
    if (rolesAndContents.length % 2 != 0) throw new SolException.Usage("encodeChat: " + rolesAndContents.length + " strings: give a role and a content by turns");
    for (String text : rolesAndContents) Objects.requireNonNull(text, "role or content");
    return call(m -> SolNative.modelEncodeChat(m, SolNative.utf8(rolesAndContents)));
  }

  /** A session with a KV cache of its own. */
  public SolSession newSession() {
    Info info = info();
    return new SolSession(call((LongFunction<Long>) SolNative::sessionCreate), info.vocabSize, info.hiddenSize);
  }
}
