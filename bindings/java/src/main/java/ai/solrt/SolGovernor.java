package ai.solrt;

/** Turns the device's state into a budget. Call {@link #step} every second or every few tokens and hand the budget to {@link SolSession#setBudget}. */
public final class SolGovernor {
  private final double[] settings;
  private final double[] state = new double[8];

  /** The budget stays between the two bounds. {@code tokensPerSecond} is the wanted rate; NaN for none. */
  public SolGovernor(double lowestBudget, double highestBudget, double tokensPerSecond) {
    settings = new double[] {lowestBudget, highestBudget, tokensPerSecond};
    SolNative.governorBegin(settings, state);
  }

  public synchronized double budget() {
    return state[0];
  }

  /**
   * The budget after this reading. {@code battery}: level, 0 to 1. {@code charging}: null if unknown. {@code thermal}: 0 is cool, at 1 the system begins to
   * throttle, as Android's {@code PowerManager.getThermalHeadroom}. {@code tokensPerSecond}: the measured rate. NaN stands for unknown.
   */
  public synchronized double step(double battery, Boolean charging, double thermal, double tokensPerSecond) {
    SolNative.governorStep(settings, battery, charging == null ? -1 : charging ? 1 : 0, thermal, tokensPerSecond, state);
    return state[0];
  }
}
