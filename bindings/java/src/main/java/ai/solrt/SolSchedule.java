package ai.solrt;

/** A schedule of the app's: picks the action of each decode step. */
public interface SolSchedule {
  /**
   * Returns an index of {@link Choice#actions}, allowed or not. Called in the thread that takes the token. It may call methods of the session that only read.
   * An exception thrown here ends the generation and comes out of the call.
   */
  int choose(Choice choice);

  /** Facts about the step. */
  final class Choice {
    /** The token that the step is to process. */
    public final int token;
    /** Decode steps before this one, and tokens in the cache. */
    public final long step, context;
    /** Tags of the actions. */
    public final String[] actions;
    /** Cost of each action at this context, in dense steps. */
    public final double[] relativeCosts;
    /** Marks actions that keep what was asked for; if none does, those that miss it least. */
    public final boolean[] allowed;
    /** Cost to aim for and cost that a step may have on average, in dense steps. The target makes up for earlier steps. */
    public final double target, allowance;
    /** The budget that is held; NaN under a rate and targets on the axes. */
    public final double budget;
    /** Cost of the steps so far over their dense cost. */
    public final double achievedBudget;
    /** Of the token's distribution: the likeliest token's probability, how far it exceeds the second likeliest's, and the entropy in nats. */
    public final double topProbability, margin, entropy;
    /** Output of the final norm in the step before. */
    public final float[] hidden;

    Choice(double[] n, byte[][] tags, double[] costs, byte[] allowed, float[] hidden) {
      token = (int) n[0]; step = (long) n[1]; context = (long) n[2]; target = n[3]; allowance = n[4]; budget = n[5]; achievedBudget = n[6];
      topProbability = n[7]; margin = n[8]; entropy = n[9];
      actions = SolNative.strings(tags, 0);
      relativeCosts = costs;
      this.allowed = new boolean[allowed.length];
      for (int i = 0; i < allowed.length; i++) this.allowed[i] = allowed[i] != 0;
      this.hidden = hidden;
    }
  }
}
