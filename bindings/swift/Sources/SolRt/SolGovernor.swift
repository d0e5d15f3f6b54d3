import CSolRt

/// Turns the device's state into a budget. Call `step` every second or every few tokens and hand the budget to `SolSession.setBudget`.
public struct SolGovernor: Sendable {
  /// The device's state; nil stands for unknown.
  public struct Reading: Sendable {
    /// Level, 0 to 1.
    public var battery: Double?
    public var charging: Bool?
    /// 0 is cool; at 1 the system begins to throttle.
    public var thermal: Double?
    /// Measured rate.
    public var tokensPerSecond: Double?

    public init(battery: Double? = nil, charging: Bool? = nil, thermal: Double? = nil, tokensPerSecond: Double? = nil) {
      self.battery = battery
      self.charging = charging
      self.thermal = thermal
      self.tokensPerSecond = tokensPerSecond
    }
  }

  private var settings = sol_governor_settings()
  private var state = sol_governor_state()

  /// The budget stays between the two bounds. `tokensPerSecond` is the wanted rate, if any.
  public init(lowestBudget: Double, highestBudget: Double, tokensPerSecond: Double? = nil) throws {
    sol_governor_settings_init(&settings, UInt32(MemoryLayout<sol_governor_settings>.stride))
    settings.lowest_budget = lowestBudget
    settings.highest_budget = highestBudget
    settings.tokens_per_second = tokensPerSecond ?? .nan
    state.size = UInt32(MemoryLayout<sol_governor_state>.stride)
    try check(sol_governor_begin(&settings, &state))
  }

  /// The budget after the last reading.
  public var budget: Double { state.budget }

  /// The budget after this reading.
  public mutating func step(_ reading: Reading) throws -> Double {
    var raw = sol_governor_reading()
    sol_governor_reading_init(&raw, UInt32(MemoryLayout<sol_governor_reading>.stride))
    raw.battery = reading.battery ?? .nan
    raw.charging = reading.charging.map { $0 ? 1 : 0 } ?? -1
    raw.thermal = reading.thermal ?? .nan
    raw.tokens_per_second = reading.tokensPerSecond ?? .nan
    try check(sol_governor_step(&settings, &raw, &state))
    return state.budget
  }
}
