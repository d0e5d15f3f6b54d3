package ai.solrt;

/** Result of a generation so far. */
public final class SolResult {
  /** Tokens that were generated, the end token included. */
  public final int tokens;
  /** Tokens of the prompt, and how many of them were in the cache. */
  public final int promptTokens, cachedTokens;
  public final String schedule, costModel;
  public final double requestedBudget, achievedBudget;
  /** Mean measured loss of the actions taken, nats a token; NaN if not measured. */
  public final double expectedLoss;
  public final double promptTokensPerSecond, tokensPerSecond, timeToFirstTokenMilliseconds;
  /** Of the cheapest action at the last context; NaN if costs are bytes. */
  public final double fastestTokensPerSecond;
  /** True if the budget lay below the cheapest action. */
  public final boolean floored;
  /** In a replay, index of the first token that differs from the trace's; -1 where all agree. */
  public final int firstDifference;
  /** Tokens that were guessed and run, and how many of them are of the text. */
  public final long draftedTokens, acceptedTokens;
  public final SolToken.Finish finish;

  SolResult(double[] n, byte[][] s) {
    schedule = SolNative.string(s[0]);
    costModel = SolNative.string(s[1]);
    tokens = (int) n[0]; promptTokens = (int) n[1]; cachedTokens = (int) n[2]; floored = n[3] != 0; firstDifference = (int) n[4];
    finish = SolToken.Finish.values()[(int) n[5]];
    requestedBudget = n[6]; achievedBudget = n[7]; expectedLoss = n[8]; promptTokensPerSecond = n[9]; tokensPerSecond = n[10];
    timeToFirstTokenMilliseconds = n[11]; fastestTokensPerSecond = n[12];
    draftedTokens = (long) n[13]; acceptedTokens = (long) n[14];
  }
}
