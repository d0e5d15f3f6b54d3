import CSolRt

/// ONNX Runtime as the app ships it. One for the whole app is enough; any number of threads may use it.
public final class SolRuntime: @unchecked Sendable {
  let pointer: OpaquePointer

  /// - Parameters:
  ///   - ortLibrary: path or name of ONNX Runtime's shared library; nil for the system's usual name.
  ///   - ortApiBase: what `OrtGetApiBase()` returns, where ONNX Runtime is linked into the app, as on iOS.
  ///   - threads: of ONNX Runtime's pool; 0 for as many as help.
  ///   - nativeOperators: false runs the function bodies in the graphs.
  ///   - spin: whether waiting threads spin; false lets them sleep, which saves battery.
  public init(
    ortLibrary: String? = nil, ortApiBase: UnsafeRawPointer? = nil, threads: Int32 = 0, nativeOperators: Bool = true, spin: Bool = true
  ) throws {
    var options = sol_runtime_options()
    sol_runtime_options_init(&options, UInt32(MemoryLayout<sol_runtime_options>.stride))
    options.ort_api_base = ortApiBase
    options.threads = threads
    options.native_operators = nativeOperators ? 1 : 0
    options.spin = spin ? 1 : 0
    var made: OpaquePointer?
    try withCString(ortLibrary) { library in
      options.ort_library = library
      try check(sol_runtime_create(&options, &made))
    }
    pointer = made!
  }

  deinit { sol_runtime_release(pointer) }

  /// Version of ONNX Runtime, as "1.23.0".
  public var ortVersion: String { string(sol_runtime_ort_version(pointer)) }

  /// Version of the core, as "0.1.0".
  public static var version: String { string(sol_version()) }
}

/// A loaded bundle. Any number of threads may use it; its sessions share the weights' memory and may outlive it.
public final class SolModel: @unchecked Sendable {
  /// Files that are compared with their hashes: none, all but the weights, or all, which takes about a second a gigabyte.
  public enum Verify: UInt32, Sendable { case none, small, all }

  /// Costs that a budget is a share of: as the environment's `SOL_RT_COSTS` says, measured where it says nothing; bytes that a step reads; milliseconds where
  /// `sol-rt profile` measured the bundle on this device, else bytes; milliseconds, which the first load of a bundle measures in 2 to 6 s, and keeps.
  public enum Costs: UInt32, Sendable { case environment, bytes, profiled, measured }

  /// Contents of a bundle.
  public struct Info: Sendable {
    public let name, generator, identity, defaultSchedule, costModel, dense: String
    /// A line about costs of the load for the user, mostly empty.
    public let costNote: String
    public let vocabSize, hiddenSize, layers, maxContext, actions: Int
    public let hasPolicy, hasLosses, hasTokenizer, hasChat, nativeOperators: Bool
    /// Size of the weights file, which the system may drop from memory.
    public let mappedBytes: UInt64
  }

  /// One way to run a decode step.
  public struct Action: Sendable {
    public let tag: String
    /// Cost at a context of 512 tokens, in dense steps.
    public let relativeCost: Double
    /// Nats a token over dense; NaN if not measured.
    public let loss: Double
  }

  let pointer: OpaquePointer

  /// Loads a bundle. Throws `SolError` with code `bundle` where the folder is none, or is damaged; what `progress` throws comes out of here.
  /// - Parameters:
  ///   - maxContext: a cap in tokens below the model's own; 0 for none.
  ///   - costTable: a cost table that was measured on this device; nil: as `costs` says.
  ///   - costs: costs that a budget is a share of.
  ///   - costsFolder: folder in which measured costs are kept; nil for one of the user's.
  ///   - prefill: key of the variant that runs prompts, as "s100-q4"; nil: the dial chooses.
  ///   - progress: called with what is being done, how much of it is done, and of how much.
  public init(
    _ runtime: SolRuntime, folder: String, verify: Verify = .small, maxContext: Int32 = 0, costTable: String? = nil,
    costs: Costs = .environment, costsFolder: String? = nil, prefill: String? = nil, progress: ((String, UInt64, UInt64) throws -> Void)? = nil
  ) throws {
    var made: OpaquePointer?
    try withoutActuallyEscaping(progress ?? { _, _, _ in }) { report in
      let call = Progress(report)
      var options = sol_model_options()
      sol_model_options_init(&options, UInt32(MemoryLayout<sol_model_options>.stride))
      options.verify = sol_verify(rawValue: verify.rawValue)
      options.max_context = maxContext
      options.costs = sol_cost_source(rawValue: costs.rawValue)
      if progress != nil {
        options.user = Unmanaged.passUnretained(call).toOpaque()
        options.progress = { user, what, done, total in
          let call = Unmanaged<Progress>.fromOpaque(user!).takeUnretainedValue()
          do { try call.report(string(what), done, total) } catch { call.thrown = error }
          return call.thrown == nil ? 0 : 1
        }
      }
      let error = try withCString(folder) { folder in
        try withCString(costTable) { table in
          try withCString(prefill) { variant in
            options.cost_table = table
            options.prefill = variant
            return try withCString(costsFolder) { kept in
              options.costs_folder = kept
              return withExtendedLifetime(call) { sol_model_load(runtime.pointer, folder, &options, &made) }
            }
          }
        }
      }
      if let thrown = call.thrown {
        sol_error_release(error)
        throw thrown
      }
      try check(error)
    }
    pointer = made!
  }

  deinit { sol_model_release(pointer) }

  public func info() throws -> Info {
    var raw = sol_model_info()
    raw.size = UInt32(MemoryLayout<sol_model_info>.stride)
    try check(sol_model_get_info(pointer, &raw))
    return Info(
      name: string(raw.name), generator: string(raw.generator), identity: string(raw.identity), defaultSchedule: string(raw.default_schedule),
      costModel: string(raw.cost_model), dense: string(raw.dense), costNote: string(raw.cost_note),
      vocabSize: Int(raw.vocab_size), hiddenSize: Int(raw.hidden_size),
      layers: Int(raw.num_layers), maxContext: Int(raw.max_context), actions: Int(raw.num_actions), hasPolicy: raw.has_policy != 0,
      hasLosses: raw.has_losses != 0, hasTokenizer: raw.has_tokenizer != 0, hasChat: raw.has_chat != 0, nativeOperators: raw.native != 0,
      mappedBytes: raw.mapped_bytes)
  }

  /// The action set.
  public func actions() throws -> [Action] {
    try (0..<info().actions).map { index in
      var raw = sol_action_info()
      raw.size = UInt32(MemoryLayout<sol_action_info>.stride)
      try check(sol_model_get_action(pointer, Int32(index), &raw))
      return Action(tag: string(raw.tag), relativeCost: raw.relative_cost, loss: raw.loss)
    }
  }

  /// Tries settings of the operators, which then hold for the process, and times every action, for about four seconds.
  /// Uses the result from the next generation on, and writes it to `file`, if any.
  public func measureCosts(file: String? = nil) throws {
    try withCString(file) { try check(sol_model_measure_costs(pointer, $0)) }
  }

  /// Takes costs from the text of a cost table, which may be the app's own, from the next generation on; nil goes back to bytes.
  public func setCosts(_ table: String?) throws {
    try withCString(table) { try check(sol_model_set_costs(pointer, $0)) }
  }

  /// Tokens of a text. `addSpecial` adds what the model wants around it; with `parseSpecial`, special tokens written in it become those tokens.
  public func encode(_ text: String, addSpecial: Bool = true, parseSpecial: Bool = false) throws -> [Int32] {
    let flags: UInt32 = (addSpecial ? 1 : 0) | (parseSpecial ? 2 : 0)
    return try filled(Int32(0)) { room, capacity, count in
      text.utf8CString.withUnsafeBufferPointer { sol_model_encode(pointer, $0.baseAddress, $0.count - 1, flags, room, capacity, count) }
    }
  }

  /// Text of tokens. Bytes that are no character become U+FFFD.
  public func decode(_ tokens: [Int32], skipSpecial: Bool = true) throws -> String {
    let bytes = try filled(CChar(0)) { room, capacity, count in
      sol_model_decode(pointer, tokens, tokens.count, skipSpecial ? 1 : 0, room, capacity, count)
    }
    return String(decoding: bytes.map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  /// Tokens of a conversation, with the beginning of the assistant's answer.
  public func encodeChat(_ messages: [(role: String, content: String)]) throws -> [Int32] {
    try withCStrings(messages.flatMap { [$0.role, $0.content] }) { texts in
      let raw = messages.indices.map { sol_message(role: texts[2 * $0], content: texts[2 * $0 + 1]) }
      return try filled(Int32(0)) { room, capacity, count in sol_model_encode_chat(pointer, raw, raw.count, room, capacity, count) }
    }
  }

  /// A session with a KV cache of its own.
  public func session() throws -> SolSession {
    let info = try self.info()
    var made: OpaquePointer?
    try check(sol_session_create(pointer, &made))
    return SolSession(made!, vocabSize: info.vocabSize, hiddenSize: info.hiddenSize)
  }

  private final class Progress {
    let report: (String, UInt64, UInt64) throws -> Void
    var thrown: (any Error)?
    init(_ report: @escaping (String, UInt64, UInt64) throws -> Void) { self.report = report }
  }
}
