package ai.solrt;

import java.util.Arrays;
import java.util.Objects;

/**
 * Options of a generation. An option that is not set is the model's own default. At most one of budget, tokensPerSecond, maxLoss and the targets on the axes
 * may be set; with none, the fastest mix of actions runs that loses at most 0.5%.
 */
public final class GenerateOptions {
  private final Builder b;

  private GenerateOptions(Builder builder) {
    b = builder;
  }

  public static Builder builder() {
    return new Builder();
  }

  SolSchedule schedule() {
    return b.choose;
  }

  /** The options as sol_rt_jni.cc takes them. A negative count, and a number that is NaN, stand for the model's own default. */
  Object[] parts() {
    int[] counts = {b.maxNewTokens, b.doSample, b.topK, b.topLogprobs, b.reuseCache, b.lossless, b.lookup, b.choose == null ? 0 : 1};
    double[] numbers = {b.temperature, b.topP, b.minP, b.repetitionPenalty, b.presencePenalty, b.frequencyPenalty,
                        b.budget, b.tokensPerSecond, b.maxLoss, b.kvDensity, b.channelDensity, b.bits};
    return new Object[] {counts, numbers, new long[] {b.seed}, b.biasTokens, b.biases, SolNative.utf8(b.stopStrings), b.endTokens,
                         SolNative.utf8(b.schedule, b.trace, b.replay)};
  }

  /** Sets options one by one. */
  public static final class Builder implements Cloneable {
    private int maxNewTokens = -1, doSample = -1, topK = -1, topLogprobs = -1, reuseCache = -1, lossless = -1, lookup = -1;
    private double temperature = Double.NaN, topP = Double.NaN, minP = Double.NaN, repetitionPenalty = Double.NaN, presencePenalty = Double.NaN;
    private double frequencyPenalty = Double.NaN, budget = Double.NaN, tokensPerSecond = Double.NaN, maxLoss = Double.NaN, kvDensity = Double.NaN;
    private double channelDensity = Double.NaN, bits = Double.NaN;
    private long seed = -1;
    private int[] biasTokens = {}, endTokens;
    private float[] biases = {};
    private String[] stopStrings;
    private String schedule, trace, replay;
    private SolSchedule choose;

    private Builder() {}

    public Builder maxNewTokens(int value) { maxNewTokens = value; return this; }
    /** True draws from the distribution; false takes the likeliest token. */
    public Builder doSample(boolean value) { doSample = value ? 1 : 0; return this; }
    public Builder temperature(double value) { temperature = value; return this; }
    public Builder topK(int value) { topK = value; return this; }
    public Builder topP(double value) { topP = value; return this; }
    public Builder minP(double value) { minP = value; return this; }
    public Builder repetitionPenalty(double value) { repetitionPenalty = value; return this; }
    public Builder presencePenalty(double value) { presencePenalty = value; return this; }
    public Builder frequencyPenalty(double value) { frequencyPenalty = value; return this; }
    /** Of sampling and of the schedule {@code random}; negative draws a fresh one. */
    public Builder seed(long value) { seed = value; return this; }
    public Builder topLogprobs(int value) { topLogprobs = value; return this; }
    /** Adds {@code bias}, -100 to 100, to the score of {@code token}. */
    public Builder logitBias(int token, float bias) {
      int n = biases.length;
      biasTokens = Arrays.copyOf(biasTokens, n + 1);
      biases = Arrays.copyOf(biases, n + 1);
      biasTokens[n] = token;
      biases[n] = bias;
      return this;
    }
    /** The text ends before the first of these. In place of the model's own. */
    public Builder stopStrings(String... values) {
      for (String value : values) Objects.requireNonNull(value, "stop string");
      stopStrings = values.clone();
      return this;
    }
    /** In place of the model's own. */
    public Builder endTokens(int... values) { endTokens = values.clone(); return this; }
    /** Share of the dense cost, 0 to 1. */
    public Builder budget(double value) { budget = value; return this; }
    /** Needs measured costs. */
    public Builder tokensPerSecond(double value) { tokensPerSecond = value; return this; }
    /** Share by which perplexity may rise, as 0.01. */
    public Builder maxLoss(double value) { maxLoss = value; return this; }
    public Builder kvDensity(double value) { kvDensity = value; return this; }
    public Builder channelDensity(double value) { channelDensity = value; return this; }
    public Builder bits(double value) { bits = value; return this; }
    /** {@code sol}, {@code hull}, {@code uniform}, {@code entropy}, {@code random}, {@code fixed:TAG} or {@code dense}. */
    public Builder schedule(String value) { schedule = value; return this; }
    /** A schedule of the app's; {@link #schedule} is then the name under which it is reported. */
    public Builder choose(SolSchedule value) { choose = value; return this; }
    /** True keeps the tokens of the prompt that the cache begins with, false runs the whole prompt. */
    public Builder reuseCache(boolean value) { reuseCache = value ? 1 : 0; return this; }
    /** True gives the text of budget 1, sooner where it repeats itself or the prompt: tokens are guessed, and several checked at once. */
    public Builder lossless(boolean value) { lossless = value ? 1 : 0; return this; }
    /** True guesses and checks tokens so under whatever the dial asks for. */
    public Builder lookup(boolean value) { lookup = value ? 1 : 0; return this; }
    /** File to write every step to, as {@code sol-rt trace} reads it. */
    public Builder trace(String file) { trace = file; return this; }
    /** A trace whose actions run again, in place of a dial. */
    public Builder replay(String file) { replay = file; return this; }

    public GenerateOptions build() {
      try {
        return new GenerateOptions((Builder) clone());
      } catch (CloneNotSupportedException impossible) {
        throw new AssertionError(impossible);
      }
    }
  }
}
