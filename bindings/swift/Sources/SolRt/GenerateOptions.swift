import CSolRt

/// Options of a generation. An option that is nil is the model's own default. At most one of `budget`, `tokensPerSecond`, `maxLoss` and the targets on the axes
/// may be set; with none, the fastest mix of actions runs that loses at most 0.5%.
public struct GenerateOptions: Sendable {
  public var maxNewTokens: Int32?
  /// True draws from the distribution; false takes the likeliest token.
  public var doSample: Bool?
  public var temperature, topP, minP, repetitionPenalty, presencePenalty, frequencyPenalty: Double?
  public var topK: Int32?
  /// Of sampling and of the schedule `random`; nil or a negative one draws a fresh one.
  public var seed: Int64?
  public var topLogprobs: Int32?
  /// Tokens, and what is added to their scores: -100 to 100.
  public var logitBias: [Int32: Float] = [:]
  /// The text ends before the first of these. In place of the model's own.
  public var stopStrings: [String]?
  /// In place of the model's own.
  public var endTokens: [Int32]?
  /// Share of the dense cost, 0 to 1.
  public var budget: Double?
  /// Needs measured costs.
  public var tokensPerSecond: Double?
  /// Share by which perplexity may rise, as 0.01.
  public var maxLoss: Double?
  public var kvDensity, channelDensity, bits: Double?
  /// `sol`, `hull`, `uniform`, `entropy`, `random`, `fixed:TAG` or `dense`.
  public var schedule: String?
  /// A schedule of the app's; `schedule` is then the name under which it is reported.
  public var choose: SolSchedule?
  /// True keeps the tokens of the prompt that the cache begins with, false runs the whole prompt.
  public var reuseCache: Bool?
  /// True gives the text of budget 1, sooner where it repeats itself or the prompt: tokens are guessed, and several checked at once.
  public var lossless = false
  /// True guesses and checks tokens so under whatever the dial asks for.
  public var lookup = false
  /// File to write every step to, as `sol-rt trace` reads it.
  public var trace: String?
  /// A trace whose actions run again, in place of a dial.
  public var replay: String?

  public init() {}

  public init(budget: Double? = nil, maxNewTokens: Int32? = nil) {
    self.budget = budget
    self.maxNewTokens = maxNewTokens
  }

  /// Calls `body` with these options in C, which are valid during that call; `asked` has to stay as long as the core may ask it.
  func withRaw(_ asked: Asked?, _ body: (inout sol_generate_options) throws -> Void) throws {
    var raw = sol_generate_options()
    sol_generate_options_init(&raw, UInt32(MemoryLayout<sol_generate_options>.stride))
    func set<T>(_ field: WritableKeyPath<sol_generate_options, T>, _ value: T?) { if let value { raw[keyPath: field] = value } }
    set(\.max_new_tokens, maxNewTokens)
    set(\.do_sample, doSample.map { $0 ? 1 : 0 })
    set(\.temperature, temperature)
    set(\.top_k, topK)
    set(\.top_p, topP)
    set(\.min_p, minP)
    set(\.repetition_penalty, repetitionPenalty)
    set(\.presence_penalty, presencePenalty)
    set(\.frequency_penalty, frequencyPenalty)
    set(\.seed, seed)
    set(\.budget, budget)
    set(\.tokens_per_second, tokensPerSecond)
    set(\.max_loss, maxLoss)
    set(\.kv_density, kvDensity)
    set(\.channel_density, channelDensity)
    set(\.bits, bits)
    set(\.top_logprobs, topLogprobs)
    set(\.reuse_cache, reuseCache.map { $0 ? 1 : 0 })
    raw.lossless = lossless ? 1 : 0
    raw.lookup = lookup ? 1 : 0
    if let asked {
      raw.choose_user = Unmanaged.passUnretained(asked).toOpaque()
      raw.choose = { user, choice in Unmanaged<Asked>.fromOpaque(user!).takeUnretainedValue().index(choice!.pointee) }
    }
    let biases = logitBias.map { sol_logit_bias(token: $0.key, bias: $0.value) }
    let ends = (endTokens ?? []) + [0]  // the pointer must not be NULL where an empty list replaces the model's tokens
    try withCStrings(stopStrings ?? []) { stops in
      try withCString(schedule) { schedule in
        try withCString(trace) { trace in
          try withCString(replay) { replay in
            try biases.withUnsafeBufferPointer { biases in
              try ends.withUnsafeBufferPointer { ends in
                try (stops + [nil]).withUnsafeBufferPointer { stops in
                  // The pointer of an empty list may be other than NULL, and would replace the model's own or a replayed trace's.
                  raw.logit_bias = biases.isEmpty ? nil : biases.baseAddress
                  raw.num_logit_bias = biases.count
                  raw.stop_strings = stopStrings == nil ? nil : stops.baseAddress
                  raw.num_stop_strings = stopStrings?.count ?? 0
                  raw.end_tokens = endTokens == nil ? nil : ends.baseAddress
                  raw.num_end_tokens = endTokens?.count ?? 0
                  raw.schedule = schedule
                  raw.trace = trace
                  raw.replay = replay
                  try body(&raw)
                }
              }
            }
          }
        }
      }
    }
  }
}
