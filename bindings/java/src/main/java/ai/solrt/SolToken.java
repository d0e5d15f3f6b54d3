package ai.solrt;

/** One generated token. */
public final class SolToken {
  public final int token;
  /** Text that is now certain; empty while a character or a stop string is incomplete. */
  public final String text;
  /** Tag of the action that computed it; for the first token that of the prompt's run. */
  public final String action;
  /** Nats, under the raw distribution. */
  public final double logprob;
  /** Of its decode step, in the cost model's unit and in dense steps; 0 for the first token. */
  public final double cost, relativeCost;
  /** Cost of the steps so far over their dense cost, and what was asked for. */
  public final double achievedBudget, requestedBudget;
  /** Since the token before; for the first token, since the start. */
  public final double milliseconds;
  public final Finish finish;
  /** The likeliest tokens and their log-probabilities, as many as {@code topLogprobs} asks for. */
  public final int[] topTokens;
  public final double[] topLogprobs;

  /** State of the generation. NONE: more tokens follow. STOP: end token or stop string. LENGTH: as many tokens as asked for, or a full context. */
  public enum Finish { NONE, STOP, LENGTH }

  SolToken(double[] n, byte[][] s) {
    text = SolNative.string(s[0]);
    action = SolNative.string(s[1]);
    token = (int) n[0]; finish = Finish.values()[(int) n[1]];
    logprob = n[2]; cost = n[3]; relativeCost = n[4]; achievedBudget = n[5]; requestedBudget = n[6]; milliseconds = n[7];
    int top = (n.length - 8) / 2;
    topTokens = new int[top];
    topLogprobs = new double[top];
    for (int i = 0; i < top; i++) {
      topTokens[i] = (int) n[8 + i];
      topLogprobs[i] = n[8 + top + i];
    }
  }

  /** True if this is the last token of the generation. */
  public boolean isLast() {
    return finish != Finish.NONE;
  }
}
