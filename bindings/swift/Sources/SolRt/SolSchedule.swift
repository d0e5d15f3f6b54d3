import CSolRt

/// A schedule of the app's: picks the action of each decode step, an index of `actions`, allowed or not. Called in the thread that computes the step; it may
/// use what only reads of the session. What it throws ends the generation and comes out of the call.
public typealias SolSchedule = @Sendable (SolChoice) throws -> Int

/// Facts that a schedule gets before a decode step.
public struct SolChoice: Sendable {
  /// The token that the step is to process.
  public let token: Int32
  /// Decode steps before this one, and tokens in the cache.
  public let step, context: Int
  /// Tags of the actions.
  public let actions: [String]
  /// Cost of each action at this context, in dense steps.
  public let relativeCosts: [Double]
  /// Marks actions that keep what was asked for; if none does, those that miss it least.
  public let allowed: [Bool]
  /// Cost to aim for and cost that a step may have on average, in dense steps. The target makes up for earlier steps.
  public let target, allowance: Double
  /// The budget that is held; NaN under a rate and targets on the axes.
  public let budget: Double
  /// Cost of the steps so far over their dense cost.
  public let achievedBudget: Double
  /// Of the token's distribution: the likeliest token's probability, how far it exceeds the second likeliest's, and the entropy in nats.
  public let topProbability, margin, entropy: Double
  /// Output of the final norm in the step before.
  public let hidden: [Float]

  init(_ raw: sol_choice) {
    token = raw.token
    step = Int(raw.step)
    context = Int(raw.context)
    actions = (0..<raw.num_actions).map { string(raw.actions[$0]) }
    relativeCosts = Array(UnsafeBufferPointer(start: raw.relative_costs, count: raw.num_actions))
    allowed = (0..<raw.num_actions).map { raw.allowed[$0] != 0 }
    target = raw.target
    allowance = raw.allowance
    budget = raw.budget
    achievedBudget = raw.achieved_budget
    topProbability = raw.distribution.pointee.top_probability
    margin = raw.distribution.pointee.margin
    entropy = raw.distribution.pointee.entropy
    hidden = Array(UnsafeBufferPointer(start: raw.hidden, count: raw.hidden_size))
  }
}

/// A schedule as the core asks it, and what it threw.
final class Asked {
  private let choose: SolSchedule
  private var thrown: (any Error)?

  init(_ choose: @escaping SolSchedule) { self.choose = choose }

  func index(_ choice: sol_choice) -> Int32 {
    do { return Int32(clamping: try choose(SolChoice(choice))) } catch { thrown = error }
    return -1
  }

  /// Throws what the schedule threw in a call, or else the call's error.
  func check(_ error: OpaquePointer?) throws {
    guard let thrown else { return try SolRt.check(error) }
    self.thrown = nil
    sol_error_release(error)
    throw thrown
  }
}
