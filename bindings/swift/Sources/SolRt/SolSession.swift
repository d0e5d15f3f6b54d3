import CSolRt
import Foundation

/// One generated token.
public struct SolToken: Sendable {
  /// State of a generation. `none`: more tokens follow. `stop`: end token or stop string. `length`: as many tokens as asked for, or a full context.
  public enum Finish: UInt32, Sendable { case none, stop, length }

  public let token: Int32
  /// Text that is now certain; empty while a character or a stop string is incomplete.
  public let text: String
  /// Tag of the action that computed it; for the first token that of the prompt's run.
  public let action: String
  /// Nats, under the raw distribution.
  public let logprob: Double
  /// Of its decode step, in the cost model's unit and in dense steps; 0 for the first token.
  public let cost, relativeCost: Double
  /// Cost of the steps so far over their dense cost, and what was asked for.
  public let achievedBudget, requestedBudget: Double
  /// Since the token before; for the first token, since the start.
  public let milliseconds: Double
  public let finish: Finish
  /// The likeliest tokens.
  public let top: [(token: Int32, logprob: Double)]

  init(_ raw: sol_token) {
    token = raw.token
    text = String(decoding: UnsafeRawBufferPointer(start: raw.text, count: raw.text_length), as: UTF8.self)
    action = string(raw.action)
    logprob = raw.logprob
    cost = raw.cost
    relativeCost = raw.relative_cost
    achievedBudget = raw.achieved_budget
    requestedBudget = raw.requested_budget
    milliseconds = raw.milliseconds
    finish = Finish(rawValue: UInt32(raw.finish.rawValue)) ?? .length
    top = (0..<raw.num_top).map { (raw.top_tokens[$0], raw.top_logprobs[$0]) }
  }
}

/// Result of a generation so far.
public struct SolResult: Sendable {
  public let tokens, promptTokens, cachedTokens: Int
  public let schedule, costModel: String
  public let requestedBudget, achievedBudget: Double
  /// Mean measured loss of the actions taken, nats a token; NaN if not measured.
  public let expectedLoss: Double
  public let promptTokensPerSecond, tokensPerSecond, timeToFirstTokenMilliseconds: Double
  /// Of the cheapest action at the last context; NaN if costs are bytes.
  public let fastestTokensPerSecond: Double
  /// True if the budget lay below the cheapest action.
  public let floored: Bool
  /// In a replay, index of the first token that differs from the trace's.
  public let firstDifference: Int?
  public let finish: SolToken.Finish
  /// Tokens that were guessed and run, and how many of them are of the text.
  public let draftedTokens, acceptedTokens: Int
}

/// Results of a run of tokens, of the last one: logits of the vocabulary, and the output of the final norm.
public struct SolOutput: Sendable {
  public let logits, hidden: [Float]
}

/// Log-probabilities of given tokens, and the decode steps that processed them.
public struct SolScores: Sendable {
  /// Of each token that was scored, in nats.
  public let logprobs: [Double]
  /// Tag of each decode step: one less than there are tokens, for the last one is only scored.
  public let actions: [String]
  /// Cost of each step, in the cost model's unit.
  public let costs: [Double]
  public let schedule: String
  public let achievedBudget, requestedBudget: Double
  /// Mean measured loss of the actions taken, nats a token; NaN if not measured.
  public let expectedLoss: Double
  /// True if the budget lay below the cheapest action.
  public let floored: Bool
}

/// One conversation with its KV cache. One thread or task at a time uses it; `cancel`, `setBudget`, `setTokensPerSecond`, `isBusy` and `close` may be called
/// from any, at any time.
public final class SolSession: @unchecked Sendable {
  private let pointer: OpaquePointer
  private let queue = DispatchQueue(label: "ai.solrt.session")
  private let lock = NSLock() // guards the fields below
  private var calls = 0, closed = false, generation = 0
  private let turn = NSLock() // held by whoever begins, continues or ends a generation
  private var asked: Asked? // the schedule of the last generation, which the core asks; used by whoever has the turn
  private let vocabSize, hiddenSize: Int

  init(_ pointer: OpaquePointer, vocabSize: Int, hiddenSize: Int) {
    self.pointer = pointer
    self.vocabSize = vocabSize
    self.hiddenSize = hiddenSize
  }

  deinit { if !closed { sol_session_release(pointer) } }

  /// The tokens of one generation. A token is computed when it is asked for, on a queue of the session's own. Cancelling the task ends the generation
  /// within one decode step, and so does leaving the loop. `rewind`, `save` and `restore` end the stream. Throws at once where prompt or options are wrong.
  public func generate(_ prompt: [Int32], _ options: GenerateOptions = GenerateOptions()) throws -> AsyncThrowingStream<SolToken, any Error> {
    let run = Run(self, try start(prompt, options))
    return AsyncThrowingStream { try await run.next() }
  }

  /// Generates in this thread. What `onToken` throws ends the generation and comes out of here; `rewind`, `save` and `restore` in it end the generation, too.
  @discardableResult
  public func generate(_ prompt: [Int32], _ options: GenerateOptions = GenerateOptions(), onToken: (SolToken) throws -> Void) throws -> SolResult {
    let id = try start(prompt, options)
    do {
      while let token = try next(id) {
        try onToken(token)
        if token.finish != .none { break }
      }
      stop(id)
      return try result()
    } catch {
      stop(id)
      throw error
    }
  }

  /// Result of the running or last generation so far.
  public func result() throws -> SolResult {
    try call { session in
      var raw = sol_result()
      raw.size = UInt32(MemoryLayout<sol_result>.stride)
      try check(sol_session_result(session, &raw))
      return SolResult(
        tokens: Int(raw.num_tokens), promptTokens: Int(raw.prompt_tokens), cachedTokens: Int(raw.cached_tokens), schedule: string(raw.schedule),
        costModel: string(raw.cost_model), requestedBudget: raw.requested_budget, achievedBudget: raw.achieved_budget, expectedLoss: raw.expected_loss,
        promptTokensPerSecond: raw.prompt_tokens_per_second, tokensPerSecond: raw.tokens_per_second,
        timeToFirstTokenMilliseconds: raw.time_to_first_token_ms, fastestTokensPerSecond: raw.fastest_tokens_per_second, floored: raw.floored != 0,
        firstDifference: raw.first_difference < 0 ? nil : Int(raw.first_difference), finish: SolToken.Finish(rawValue: UInt32(raw.finish.rawValue)) ?? .length,
        draftedTokens: Int(raw.drafted_tokens), acceptedTokens: Int(raw.accepted_tokens))
    }
  }

  /// Appends tokens to the cache, under the action of a tag, or nil for the dense one. One token is a decode step; several run as a prompt does. Ends a
  /// running generation.
  public func forward(_ tokens: [Int32], action: String? = nil) throws -> SolOutput {
    var logits = [Float](repeating: 0, count: vocabSize), hidden = [Float](repeating: 0, count: hiddenSize)
    try call { session in
      try withCString(action) { action in
        try logits.withUnsafeMutableBufferPointer { logits in
          try hidden.withUnsafeMutableBufferPointer { hidden in
            var rows = sol_rows()
            rows.size = UInt32(MemoryLayout<sol_rows>.stride)
            rows.num_logits = 1
            rows.logits = logits.baseAddress
            rows.logits_length = logits.count
            rows.hidden = hidden.baseAddress
            rows.hidden_length = hidden.count
            try check(sol_session_forward(session, tokens, tokens.count, action, &rows, nil))
          }
        }
      }
    }
    return SolOutput(logits: logits, hidden: hidden)
  }

  /// Runs the first `context` tokens as a prompt on an empty cache, then scores each later token and processes it as a decode step. Of the options the dial,
  /// the schedule and the seed count; without a dial it is a budget of 1. Ends a running generation.
  public func score(_ tokens: [Int32], context: Int, _ options: GenerateOptions = GenerateOptions()) throws -> SolScores {
    let asked = options.choose.map(Asked.init)
    var logprobs = [Double](repeating: 0, count: max(tokens.count - context, 0))
    return try call { session in
      var raw = sol_scores()
      raw.size = UInt32(MemoryLayout<sol_scores>.stride)
      try options.withRaw(asked) { options in
        try logprobs.withUnsafeMutableBufferPointer { room in
          raw.logprobs = room.baseAddress
          raw.logprobs_length = room.count
          let error = sol_session_score(session, tokens, tokens.count, context, &options, &raw)
          try asked?.check(error) ?? check(error)
        }
      }
      return SolScores(
        logprobs: logprobs, actions: (0..<raw.num_actions).map { string(raw.actions[$0]) },
        costs: Array(UnsafeBufferPointer(start: raw.costs, count: raw.num_actions)), schedule: string(raw.schedule), achievedBudget: raw.achieved_budget,
        requestedBudget: raw.requested_budget, expectedLoss: raw.expected_loss, floored: raw.floored != 0)
    }
  }

  /// Tokens in the KV cache.
  public func tokens() throws -> [Int32] {
    try call { session in try filled(Int32(0)) { sol_session_tokens(session, $0, $1, $2) } }
  }

  /// Keeps the first `length` tokens of the cache. Ends a running generation.
  public func rewind(_ length: Int) throws {
    try call { try check(sol_session_rewind($0, length)) }
  }

  /// Writes tokens and cache to a file, as a whole or not at all. Ends a running generation.
  public func save(_ file: String) throws {
    try call { session in try withCString(file) { try check(sol_session_save(session, $0)) } }
  }

  /// Reads what `save` wrote, with the same bundle. Ends a running generation.
  public func restore(_ file: String) throws {
    try call { session in try withCString(file) { try check(sol_session_restore(session, $0)) } }
  }

  /// Bytes of memory that only this session uses: KV cache and buffers.
  public func privateBytes() throws -> UInt64 { try call { sol_session_private_bytes($0) } }

  /// The call that is running, or the next one, ends with `SolError.Code.cancelled` within one decode step. Does nothing on a closed session.
  public func cancel() { try? call { sol_session_cancel($0) } }

  /// Holds from the next decode step on; 0 to 1. Throws `usage` where no generation is running.
  public func setBudget(_ budget: Double) throws { try call { try check(sol_session_set_budget($0, budget)) } }

  /// As `setBudget`, with a rate that needs measured costs.
  public func setTokensPerSecond(_ rate: Double) throws { try call { try check(sol_session_set_tokens_per_second($0, rate)) } }

  /// True if a call runs or a generation is under way.
  public var isBusy: Bool { (try? call { sol_session_busy($0) != 0 }) ?? false }

  /// Ends a running call with `cancelled`, and frees the memory as soon as no call uses it. Other calls throw `usage` from then on.
  public func close() {
    lock.lock()
    let idle = !closed && calls == 0
    if !closed && !idle { sol_session_cancel(pointer) }
    closed = true
    lock.unlock()
    if idle { sol_session_release(pointer) }
  }

  private func call<T>(_ body: (OpaquePointer) throws -> T) throws -> T {
    try lock.withLock {
      if closed { throw SolError.usage("the session is closed: make another one") }
      calls += 1
    }
    defer {
      let last = lock.withLock { () -> Bool in
        calls -= 1
        return closed && calls == 0
      }
      if last { sol_session_release(pointer) }
    }
    return try body(pointer)
  }

  /// The number of the generation that begins. It is counted in the same turn, so that no other one can begin in between.
  private func start(_ prompt: [Int32], _ options: GenerateOptions) throws -> Int {
    try alone { session in
      let asked = options.choose.map(Asked.init)
      try options.withRaw(asked) { try check(sol_session_start(session, prompt, prompt.count, &$0)) }
      self.asked = asked
      return lock.withLock {
        generation += 1
        return generation
      }
    }
  }

  /// Nil where the generation is over.
  private func next(_ id: Int) throws -> SolToken? {
    try requireLast(id)
    return try alone { session in
      try requireLast(id)
      if sol_session_busy(session) == 0 { return nil }
      var raw = sol_token()
      raw.size = UInt32(MemoryLayout<sol_token>.stride)
      let error = sol_session_next(session, &raw)
      try asked?.check(error) ?? check(error)
      return SolToken(raw)
    }
  }

  /// Ends generation `id`, if it is still the last one, and forgets a request to cancel it. A newer one never finds the session busy for that.
  private func stop(_ id: Int) {
    if !isLast(id) { return }
    turn.withLock { if isLast(id) { try? call { try check(sol_session_stop($0)) } } }
  }

  private func cancel(_ id: Int) { if isLast(id) { cancel() } }

  private func requireLast(_ id: Int) throws {
    if !isLast(id) { throw SolError.usage("another generation began on this session: use a session for each stream") }
  }

  private func isLast(_ id: Int) -> Bool { lock.withLock { generation == id } }

  private func alone<T>(_ body: (OpaquePointer) throws -> T) throws -> T {
    if !turn.try() { throw SolError(code: .busy, description: "the session is in use by another thread: wait, or open another") }
    defer { turn.unlock() }
    return try call(body)
  }

  /// A generation as a stream sees it: it ends when the stream goes.
  private final class Run: @unchecked Sendable {
    private let session: SolSession
    private let id: Int
    private var over = false

    init(_ session: SolSession, _ id: Int) {
      self.session = session
      self.id = id
    }

    deinit { session.stop(id) }

    func next() async throws -> SolToken? {
      if over { return nil }
      do {
        let made = try await withTaskCancellationHandler {
          try Task.checkCancellation()
          return try await withCheckedThrowingContinuation { (continuation: CheckedContinuation<SolToken?, any Error>) in
            // The queue holds the session, not this object: it must go with the stream, at once.
            session.queue.async { [session, id] in continuation.resume(with: Result { try session.next(id) }) }
          }
        } onCancel: {
          session.cancel(id)
        }
        over = made.map { $0.finish != .none } ?? true
        return made
      } catch {
        over = true
        session.stop(id)
        throw Task.isCancelled ? CancellationError() : error
      }
    }
  }
}
