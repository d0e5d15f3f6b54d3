package ai.solrt;

/** Log-probabilities of given tokens, and the decode steps that processed them. */
public final class SolScores {
  /** Of each token that was scored, in nats. */
  public final double[] logprobs;
  /** Tag of each decode step: one less than there are tokens, for the last one is only scored. */
  public final String[] actions;
  /** Cost of each step, in the cost model's unit. */
  public final double[] costs;
  public final String schedule;
  public final double achievedBudget, requestedBudget;
  /** Mean measured loss of the actions taken, nats a token; NaN if not measured. */
  public final double expectedLoss;
  /** True if the budget lay below the cheapest action. */
  public final boolean floored;

  SolScores(double[] n, byte[][] s, double[] logprobs, double[] costs) {
    achievedBudget = n[0]; requestedBudget = n[1]; expectedLoss = n[2]; floored = n[3] != 0;
    schedule = SolNative.string(s[0]);
    actions = SolNative.strings(s, 1);
    this.logprobs = logprobs;
    this.costs = costs;
  }
}
