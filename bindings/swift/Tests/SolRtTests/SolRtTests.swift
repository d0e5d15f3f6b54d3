import Foundation
import SolRt
import XCTest

final class SolRtTests: XCTestCase {
  static let runtime = try! SolRuntime(ortLibrary: variable("SOL_TEST_ORT"))
  static let model = try! SolModel(runtime, folder: bundle)
  static let bundle = variable("SOL_TEST_BUNDLE")
  static let scratch = variable("SOL_TEST_SCRATCH")
  static let cases = try! GoldenCase.all(native: model.info().nativeOperators)
  let prompt = cases[0].prompt

  struct Mine: Error {}

  func testGoldenTraces() async throws {
    XCTAssertFalse(Self.cases.isEmpty)
    for golden in Self.cases {
      let session = try Self.model.session()
      var made: [SolToken] = []
      for try await token in try session.generate(golden.prompt, golden.options) {
        made.append(token)
        if let budget = golden.budgetAt[made.count] { try session.setBudget(budget) }
      }
      XCTAssertEqual(made.map(\.token), golden.tokens, golden.name)
      XCTAssertEqual(made.dropFirst().map(\.action), golden.actions, golden.name)
      XCTAssertEqual(made.count, golden.costs.count + 1)
      for (token, cost) in zip(made.dropFirst(), golden.costs) { XCTAssertEqual(token.relativeCost, cost, accuracy: 1e-9 * cost, golden.name) }
      XCTAssertEqual(made.map(\.text).joined(), golden.text, golden.name)
    }
  }

  func testAStreamAndACallbackGiveTheSame() async throws {
    let session = try Self.model.session()
    var options = dense(12)
    options.topLogprobs = 3
    var called: [Int32] = []
    let result = try session.generate(prompt, options) { token in
      called.append(token.token)
      XCTAssertEqual(token.top.count, 3)
      XCTAssertEqual(token.top[0].token, token.token)
    }
    XCTAssertEqual(result.tokens, 12)
    XCTAssertEqual(result.schedule, "dense")
    XCTAssertEqual(result.finish, .length)
    let streamed = try await tokens(session, 12)
    XCTAssertEqual(called, streamed)
    options.logitBias = [7: 100]
    try session.generate(prompt, options) { XCTAssertEqual($0.token, 7) }
    options = dense(12)
    options.endTokens = [called[2]]
    XCTAssertEqual(try session.generate(prompt, options) { _ in }.tokens, 1 + called.firstIndex(of: called[2])!)
  }

  func testWhatAModelSaysOfItself() throws {
    let info = try Self.model.info()
    XCTAssertTrue(info.mappedBytes > 0 && info.layers > 0 && info.identity.count == 64)
    XCTAssertTrue(try Self.model.actions().contains { $0.tag == info.dense })
    XCTAssertTrue(!SolRuntime.version.isEmpty && Self.runtime.ortVersion.hasPrefix("1."))
    if info.hasTokenizer {
      let words = Array(repeating: "w3", count: 3000).joined(separator: " ")
      let back = try Self.model.decode(Self.model.encode(words, addSpecial: false))
      XCTAssertEqual(back.trimmingCharacters(in: .whitespaces), words)
      XCTAssertEqual(try Self.model.encode("", addSpecial: false), [])
      _ = try Self.model.encode("\u{1f600} \0 é")
    }
    if info.hasChat {
      XCTAssertGreaterThan(try Self.model.encodeChat([("user", "w1")]).count, 1)
    } else {
      fails(.text) { try Self.model.encodeChat([("user", "w1")]) }
    }
  }

  func testAConversationOfThousandsOfMessages() throws {
    guard try Self.model.info().hasChat else { throw XCTSkip("the bundle has no chat") }
    let messages = (0..<10_000).map { (role: $0 % 2 == 0 ? "user" : "assistant", content: "w\($0)!") }
    var rest = Substring(try Self.model.decode(Self.model.encodeChat(messages)))
    for message in messages {
      let found = try XCTUnwrap(rest.range(of: message.content), message.content)
      rest = rest[found.upperBound...]
    }
    XCTAssertThrowsError(try Self.model.encodeChat(messages + [("user", "a\0b")]))
  }

  func testForwardGivesTheLogitsOfAGeneration() async throws {
    let session = try Self.model.session()
    let expected = try await tokens(session, 6)
    try session.rewind(0)
    var run = prompt
    for token in expected {
      let made = try session.forward(run)
      XCTAssertEqual(made.logits.firstIndex(of: made.logits.max()!), Int(token))
      XCTAssertEqual(made.hidden.count, try Self.model.info().hiddenSize)
      run = [token]
    }
    fails(.usage) { try session.forward(self.prompt, action: "k100") }
    fails(.usage) { try session.forward([]) }
  }

  func testAScoreHasTheNumbersOfTheGeneration() throws {
    let session = try Self.model.session()
    var options = dense(20)
    options.schedule = "hull"
    options.budget = 0.6
    var made: [SolToken] = []
    try session.generate(prompt, options) { made.append($0) }
    let tokens = prompt + made.map(\.token)
    let scores = try session.score(tokens, context: prompt.count, options)
    XCTAssertEqual(scores.logprobs, made.map(\.logprob))
    XCTAssertEqual(scores.actions, made.dropFirst().map(\.action))
    XCTAssertEqual(scores.costs, made.dropFirst().map(\.cost))
    XCTAssertEqual(scores.schedule, "hull")
    XCTAssertEqual(scores.achievedBudget, made[19].achievedBudget)
    for wrong in [-1, 0, tokens.count, tokens.count + 1] { fails(.usage) { try session.score(tokens, context: wrong, options) } }
  }

  func testAScheduleOfTheAppsPicksTheActions() throws {
    let session = try Self.model.session()
    let info = try Self.model.info()
    let tag = try Self.model.actions()[5].tag
    var options = dense(12)
    options.schedule = "fixed:" + tag
    var expected: [Int32] = [], made: [Int32] = []
    try session.generate(prompt, options) { expected.append($0.token) }
    options.schedule = "mine"
    options.budget = 0.9
    options.choose = { choice in
      guard choice.hidden.count == info.hiddenSize, choice.budget == 0.9, choice.entropy > 0, choice.margin <= choice.topProbability,
        choice.relativeCosts.count == choice.actions.count, choice.allowed.count == choice.actions.count
      else { throw Mine() }
      return choice.actions.firstIndex(of: tag)!
    }
    XCTAssertEqual(try session.generate(prompt, options) { made.append($0.token) }.schedule, "mine")
    XCTAssertEqual(made, expected)
    XCTAssertTrue(try session.score(prompt, context: 1, options).actions.allSatisfy { $0 == tag })
    options.choose = { _ in throw Mine() }
    XCTAssertThrowsError(try session.generate(prompt, options) { _ in }) { XCTAssertTrue($0 is Mine) }
    XCTAssertThrowsError(try session.score(prompt, context: 1, options)) { XCTAssertTrue($0 is Mine) }
    options.choose = { _ in 1000 }
    fails(.usage) { try session.score(self.prompt, context: 1, options) }
  }

  func testCostsOfTheApps() throws {
    let model = try SolModel(Self.runtime, folder: Self.bundle)
    let lines = Set(try model.actions().map { String($0.tag.dropFirst(5)) }).map {
      "\"\($0)\": {\"1.0\": {\"fixed\": \($0 == "s100-q4" ? 2 : 8), \"per_token\": 0, \"per_page\": 0, \"error\": 0}}"
    }
    let head = #""format": "sol_rt.cost_table", "format_version": 1, "device": "", "created": "", "policy_ms": 0, "quick": false, "steady": true"#
    try model.setCosts("{\(head), \"tuning\": null, \"bundle\": \"\(try model.info().identity)\", \"lines\": {\(lines.joined(separator: ", "))}}")
    XCTAssertEqual(try model.info().costModel, "measured")
    XCTAssertEqual(try model.actions().first { $0.tag == "k100-s100-q4" }?.relativeCost, 0.25)
    fails(.bundle) { try model.setCosts("{}") }
    try model.setCosts(nil)
    XCTAssertEqual(try model.info().costModel, "bytes")
  }

  func testACallInALoopEndsTheGeneration() async throws {
    let session = try Self.model.session()
    let expected = try await tokens(session, 8)
    let file = Self.scratch + "/swift-ends"
    try session.save(file)
    let calls: [(String, () throws -> Void)] = [
      ("rewind", { try session.rewind(2) }), ("save", { try session.save(file) }), ("restore", { try session.restore(file) }),
      ("a save that fails", { self.fails(.write) { try session.save("/none/session") } }),
    ]
    for (name, end) in calls {
      var seen: [Int32] = []
      let result = try session.generate(prompt, dense(8)) {
        seen.append($0.token)
        if seen.count == 3 { try end() }
      }
      XCTAssertEqual(seen, Array(expected.prefix(3)), name)
      XCTAssertEqual(result.tokens, 3, name)
      XCTAssertFalse(session.isBusy, name)
      seen = []
      for try await token in try session.generate(prompt, dense(8)) {
        seen.append(token.token)
        if seen.count == 3 { try end() }
      }
      XCTAssertEqual(seen, Array(expected.prefix(3)), name)
    }
    var seen = 0
    let result = try session.generate(prompt, dense(8)) { _ in
      seen += 1
      if seen == 3 { fails(.usage) { try session.rewind(1_000_000) } }
    }
    XCTAssertEqual(result.tokens, 8, "a call that is refused ends nothing")
    let again = try await tokens(session, 8)
    XCTAssertEqual(again, expected)
  }

  func testLeavingTheLoopEndsTheGeneration() async throws {
    let session = try Self.model.session()
    let expected = try await tokens(session, 8)
    try await leave(session)
    XCTAssertFalse(session.isBusy)
    let again = try await tokens(session, 8)
    XCTAssertEqual(again, expected)
  }

  private func leave(_ session: SolSession) async throws {
    var seen = 0
    for try await _ in try session.generate(prompt, dense(100)) {
      seen += 1
      if seen == 3 { break }
    }
  }

  func testCancelledTasks() async throws {
    let session = try Self.model.session()
    let expected = try await tokens(session, 8)
    let prompt = prompt
    for _ in 0..<20 {
      let (first, signal) = AsyncStream<Void>.makeStream()
      let task = Task {
        while !Task.isCancelled {
          for try await _ in try session.generate(prompt, dense(100)) { signal.yield() }
        }
      }
      for await _ in first { break }
      task.cancel()
      // In mid-token the loop throws; between tokens it ends, as every stream of a cancelled task does.
      if case .failure(let error) = await task.result { XCTAssertTrue(error is CancellationError, "\(error)") }
      XCTAssertFalse(session.isBusy)
      let again = try await tokens(session, 8)
      XCTAssertEqual(again, expected)
    }
  }

  func testCancelByHand() async throws {
    let session = try Self.model.session()
    var seen = 0
    fails(.cancelled) {
      try session.generate(prompt, dense(8)) { _ in
        seen += 1
        if seen == 3 { session.cancel() }
      }
    }
    XCTAssertEqual(seen, 3)
    do {
      for try await _ in try session.generate(prompt, dense(8)) { session.cancel() }
      XCTFail("nothing was thrown")
    } catch let error as SolError {
      XCTAssertEqual(error.code, .cancelled)
    }
    let again = try await tokens(session, 8)
    XCTAssertEqual(again.count, 8)
    try session.generate(prompt, dense(8)) { token in
      if token.finish != .none { session.cancel() }  // too late for this text
    }
    let after = try await tokens(session, 8)
    XCTAssertEqual(after, again)
  }

  func testAReplayKeepsTheSettingsOfItsTrace() throws {
    func run(_ options: GenerateOptions) throws -> (tokens: [Int32], text: String, finish: SolToken.Finish) {
      var made: [SolToken] = []
      let result = try Self.model.session().generate(prompt, options) { made.append($0) }
      return (made.map(\.token), made.map(\.text).joined(), result.finish)
    }
    var options = dense(12)
    options.logitBias = [try run(dense(1)).tokens[0]: -100]
    let text = try run(options).text
    options.stopStrings = [String(text.dropFirst(text.count / 2).prefix(3))]
    options.trace = Self.scratch + "/swift-trace"
    let recorded = try run(options)
    XCTAssertEqual(recorded.finish, .stop)
    var replay = GenerateOptions()
    replay.replay = options.trace
    let repeated = try run(replay)
    XCTAssertEqual(repeated.tokens, recorded.tokens)
    XCTAssertEqual(repeated.text, recorded.text)
    XCTAssertEqual(repeated.finish, .stop)
    replay.stopStrings = []
    XCTAssertEqual(try run(replay).finish, .length)
  }

  func testAnotherGenerationOnTheSameSession() async throws {
    let session = try Self.model.session()
    var second: AsyncThrowingStream<SolToken, any Error>.AsyncIterator?
    do {
      for try await _ in try session.generate(prompt, dense(8)) { second = try session.generate(prompt, dense(8)).makeAsyncIterator() }
      XCTFail("nothing was thrown")
    } catch let error as SolError {
      XCTAssertEqual(error.code, .usage)
    }
    let token = try await second!.next()
    XCTAssertEqual(token?.finish, SolToken.Finish.none)
  }

  func testTwoThreadsOnOneSession() throws {
    let session = try Self.model.session()
    let prompts = [prompt, Self.cases[1].prompt]
    let texts = try prompts.map { prompt in
      var made: [Int32] = []
      try session.generate(prompt, dense(6)) { made.append($0.token) }
      return made
    }
    XCTAssertNotEqual(texts[0][0], texts[1][0])
    DispatchQueue.concurrentPerform(iterations: 2) { thread in
      for _ in 0..<500 {
        var made: [Int32] = []
        do {
          try session.generate(prompts[thread], dense(6)) { made.append($0.token) }
        } catch {
          XCTAssertTrue([.busy, .usage].contains((error as? SolError)?.code), "\(error)")
        }
        XCTAssertEqual(made, Array(texts[thread].prefix(made.count)))
      }
    }
    XCTAssertFalse(session.isBusy)
  }

  func testAStaleStreamDoesNotDisturbTheLiveOne() throws {
    let session = try Self.model.session()
    nonisolated(unsafe) var stale: [AsyncThrowingStream<SolToken, any Error>] = []
    for _ in 0..<300 { stale.append(try session.generate(prompt, dense(1))) }
    try session.generate(prompt, dense(1)) { _ in }
    DispatchQueue.concurrentPerform(iterations: 2) { thread in
      if thread == 1 {
        while !stale.isEmpty {
          stale.removeLast()
          usleep(200)
        }
      } else {
        for _ in 0..<400 {
          do { try session.generate(prompt, dense(6)) { _ in } } catch { XCTFail("\(error)") }
        }
      }
    }
  }

  func testABudgetThatMoves() async throws {
    let session = try Self.model.session()
    var options = dense(24)
    options.schedule = "uniform"
    options.budget = 1
    var costs: [Double] = []
    for try await token in try session.generate(prompt, options) {
      costs.append(token.relativeCost)
      if costs.count == 8 {
        try await Task.detached { try session.setBudget(0.5) }.value
        fails(.usage) { try session.setBudget(1.5) }
        fails(.usage) { try session.setBudget(.nan) }
        fails(.usage) { try session.setTokensPerSecond(20) }
      }
    }
    XCTAssertTrue(costs[1..<8].allSatisfy { $0 == 1 })
    XCTAssertLessThan(costs[8...].reduce(0, +) / 16, 0.9)
    fails(.usage) { try session.setBudget(0.5) }
  }

  func testCloseDuringAGeneration() async throws {
    let prompt = prompt
    for _ in 0..<20 {
      let session = try Self.model.session()
      let (first, signal) = AsyncStream<Void>.makeStream()
      let task = Task {
        for try await _ in try session.generate(prompt, dense(100)) { signal.yield() }
      }
      for await _ in first { break }
      session.close()
      session.close()
      switch await task.result {
      case .success: break  // the last token was already there
      case .failure(let error): XCTAssertTrue([.cancelled, .usage].contains((error as? SolError)?.code), "\(error)")
      }
      session.cancel()
      fails(.usage) { try session.tokens() }
      fails(.usage) { try session.generate(prompt) { _ in } }
    }
  }

  func testTwoModelsAtOnce() async throws {
    let expected = try await tokens(Self.model.session(), 30)
    try await withThrowingTaskGroup(of: [Int32].self) { group in
      for _ in 0..<4 {
        group.addTask { try await self.tokens(SolModel(Self.runtime, folder: Self.bundle).session(), 30) }
      }
      for try await result in group { XCTAssertEqual(result, expected) }
    }
  }

  func testAThousandLoads() async throws {
    for index in 0..<1000 {
      let session = try SolModel(Self.runtime, folder: Self.bundle).session()
      if index % 250 == 0 { try session.generate(prompt, dense(2)) { _ in } }
    }
  }

  func testASessionGoesToAFileAndBack() async throws {
    let file = Self.scratch + "/swift-session"
    let (session, second) = (try Self.model.session(), try Self.model.session())
    let expected = try await tokens(session, 10)
    try session.save(file)
    try second.restore(file)
    XCTAssertEqual(try session.tokens(), try second.tokens())
    try session.rewind(prompt.count)
    XCTAssertEqual(try session.tokens(), prompt)
    XCTAssertGreaterThan(try session.privateBytes(), 0)
    fails(.usage) { try session.rewind(1_000_000) }
    fails(nil) { try session.restore(Self.bundle + "/weights.bin") }
    fails(nil) { try session.restore(file + ".none") }
    let full = variable("SOL_TEST_FULL") + "/swift-session"
    fails(.write) { try second.save(full) }
    XCTAssertFalse(FileManager.default.fileExists(atPath: full))
    fails(.write) { try second.save("/none/session") }
    let again = try await tokens(second, 10)
    XCTAssertEqual(again, expected)
  }

  func testAPromptRunsThroughAnotherVariant() throws {
    let cheap = try SolModel(Self.runtime, folder: Self.bundle, prefill: "s100-q4")
    var options = dense(3)
    options.trace = Self.scratch + "/swift-prefill-trace"
    var made: [SolToken] = []
    try cheap.session().generate(prompt, options) { made.append($0) }
    XCTAssertEqual(made[0].action, "k100-s100-q4")
    XCTAssertEqual(made[1].action, try Self.model.info().dense)
    let header = try String(contentsOfFile: options.trace!, encoding: .utf8).split(separator: "\n")[0]
    XCTAssertTrue(header.contains("\"prefill\":\"s100-q4\""), String(header))
    var replay = GenerateOptions()
    replay.replay = options.trace
    XCTAssertNil(try Self.model.session().generate(prompt, replay) { _ in }.firstDifference)
    XCTAssertThrowsError(try SolModel(Self.runtime, folder: Self.bundle, prefill: "s001-q4")) { error in
      let error = error as? SolError, begin = "--prefill: got 's001-q4', expected one of the bundle's variants: s100-q8, "
      XCTAssertTrue(error?.code == .usage && error?.description.hasPrefix(begin) == true, error?.description ?? "")
    }
  }

  func testWhatCannotBeLoaded() throws {
    for wrong in [Self.scratch + "/none", Self.scratch, "/dev/null", "", "é😀"] {
      fails(.bundle) { try SolModel(Self.runtime, folder: wrong) }
    }
    fails(.usage) { try SolModel(Self.runtime, folder: "a\0b") }
    let damaged = try FileManager.default.contentsOfDirectory(atPath: variable("SOL_TEST_DAMAGED"))
    XCTAssertGreaterThanOrEqual(damaged.count, 5)
    for folder in damaged { fails(.bundle) { try SolModel(Self.runtime, folder: variable("SOL_TEST_DAMAGED") + "/" + folder) } }
  }

  func testRuntimesThatCannotBeUsedAndANewerOne() async throws {
    let lines = try String(contentsOfFile: variable("SOL_TEST_RUNTIMES"), encoding: .utf8).split(separator: "\n")
    XCTAssertGreaterThanOrEqual(lines.count, 7, "absent, wrong and old ones")
    for line in lines {
      let fields = line.split(separator: "\t").map(String.init)
      fails(.runtime) { try SolRuntime(ortLibrary: fields[0]) }
      XCTAssertThrowsError(try SolRuntime(ortLibrary: fields[0])) { error in
        let message = (error as? SolError)?.description ?? ""
        XCTAssertTrue(message.hasPrefix(fields[1]) && message.hasSuffix(fields[2]), message)
      }
    }
    let newer = try SolRuntime(ortLibrary: variable("SOL_TEST_NEWER"))
    XCTAssertEqual(newer.ortVersion, "1.99.0")
    let session = try SolModel(newer, folder: Self.bundle).session()
    let made = try await tokens(session, 3)
    XCTAssertEqual(made.count, 3)
  }

  func testWhatIsOutOfRange() async throws {
    let session = try Self.model.session()
    fails(.usage) { try session.generate(self.prompt, GenerateOptions(budget: 2)) as AsyncThrowingStream }
    fails(.usage) { try session.generate([], dense(1)) as AsyncThrowingStream }
    fails(.usage) { try session.generate([1 << 30], dense(1)) as AsyncThrowingStream }
    var options = GenerateOptions(budget: 0.5)
    options.maxLoss = 0.1
    fails(.usage) { try session.generate(self.prompt, options) as AsyncThrowingStream }
    options = GenerateOptions()
    options.schedule = "none"
    fails(.usage) { try session.generate(self.prompt, options) as AsyncThrowingStream }
    options.schedule = "a\0b"
    fails(.usage) { try session.generate(self.prompt, options) as AsyncThrowingStream }
    fails(nil) { try session.generate(Array(repeating: 1, count: 100_000), dense(1)) { _ in } }
    let again = try await tokens(session, 3)
    XCTAssertEqual(again.count, 3)
  }

  func testCallbacksThatThrow() async throws {
    let session = try Self.model.session()
    XCTAssertThrowsError(try session.generate(prompt, dense(9)) { _ in throw Mine() }) { XCTAssertTrue($0 is Mine) }
    let again = try await tokens(session, 3)
    XCTAssertEqual(again.count, 3)
    XCTAssertThrowsError(try SolModel(Self.runtime, folder: Self.bundle, verify: .all) { _, _, _ in throw Mine() }) { XCTAssertTrue($0 is Mine) }
    var seen = 0
    _ = try SolModel(Self.runtime, folder: Self.bundle, verify: .all) { _, _, _ in seen += 1 }
    XCTAssertGreaterThan(seen, 0)
  }

  func testTheGovernorFollowsItsRecordedCurves() throws {
    let file = URL(fileURLWithPath: variable("SOL_TEST_CASES")).deletingLastPathComponent().appendingPathComponent("governor.tsv")
    var curve: (name: String, governor: SolGovernor)?
    for line in try String(contentsOf: file, encoding: .utf8).split(separator: "\n") where !line.hasPrefix("#") {
      let fields = line.split(separator: "\t").map(String.init)
      if curve?.name != fields[0] {
        curve = (fields[0], try SolGovernor(lowestBudget: Double(fields[1])!, highestBudget: Double(fields[2])!, tokensPerSecond: Double(fields[3])))
      }
      let charging = Double(fields[5]).map { $0 == 1 }
      let reading = SolGovernor.Reading(battery: Double(fields[4]), charging: charging, thermal: Double(fields[6]), tokensPerSecond: Double(fields[7]))
      XCTAssertEqual(try curve!.governor.step(reading), Double(fields[8])!, accuracy: 1e-9, String(line))
    }
    XCTAssertNotNil(curve)
  }

  func testTheGovernorHoldsItsBounds() throws {
    var governor = try SolGovernor(lowestBudget: 0.4, highestBudget: 0.9)
    for step in 0..<200 {
      let budget = try governor.step(.init(battery: 0.5, charging: step % 2 == 0, thermal: step < 100 ? 1.5 : 0.1))
      XCTAssertTrue((0.4...0.9).contains(budget))
      if step == 99 { XCTAssertLessThan(budget, 0.9) }
    }
    fails(.usage) { try SolGovernor(lowestBudget: 0.9, highestBudget: 0.4) }
  }

  private func tokens(_ session: SolSession, _ count: Int32) async throws -> [Int32] {
    var made: [Int32] = []
    for try await token in try session.generate(prompt, dense(count)) { made.append(token.token) }
    return made
  }

  private func fails<T>(_ code: SolError.Code?, line: UInt = #line, _ body: () throws -> T) {
    XCTAssertThrowsError(try body(), line: line) { error in
      guard let error = error as? SolError else { return XCTFail("\(error)", line: line) }
      XCTAssertFalse(error.description.isEmpty || error.description.contains("\n"), line: line)
      if let code { XCTAssertEqual(error.code, code, error.description, line: line) }
    }
  }
}

/// Greedy and dense, without an end token.
private func dense(_ count: Int32) -> GenerateOptions {
  var options = GenerateOptions(maxNewTokens: count)
  options.schedule = "dense"
  options.endTokens = []
  return options
}
