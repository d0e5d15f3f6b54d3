// An answer from a bundle, with a budget that follows the device's state:
//   swift run Sample ONNXRUNTIME_LIBRARY BUNDLE "a question" [LOWEST_BUDGET HIGHEST_BUDGET]
import Foundation
import SolRt

/// Heat as the system reports it, on the governor's scale: at 1 the system begins to throttle.
func thermal() -> Double? {
  #if canImport(Darwin)
    switch ProcessInfo.processInfo.thermalState {
    case .nominal: return 0.5
    case .fair: return 0.85
    case .serious: return 0.95
    case .critical: return 1.0
    @unknown default: return nil
    }
  #else
    return nil
  #endif
}

func generate() async throws {
  let arguments = Array(CommandLine.arguments.dropFirst())
  guard arguments.count >= 3 else {
    print("usage: Sample ONNXRUNTIME_LIBRARY BUNDLE QUESTION [LOWEST_BUDGET HIGHEST_BUDGET]")
    exit(2)
  }
  let bounds = arguments.dropFirst(3).compactMap(Double.init)
  var governor = try SolGovernor(lowestBudget: bounds.first ?? 0.4, highestBudget: bounds.last ?? 1)
  let model = try SolModel(SolRuntime(ortLibrary: arguments[0]), folder: arguments[1])
  let session = try model.session()
  // A bundle whose template the core cannot render goes on with the question as plain text.
  let prompt = try model.info().hasChat ? model.encodeChat([("user", arguments[2])]) : model.encode(arguments[2])
  var asked = Date()
  for try await token in try session.generate(prompt, GenerateOptions(budget: governor.budget, maxNewTokens: 100)) {
    print(token.text, terminator: "")
    fflush(stdout)
    if token.finish == .none, Date().timeIntervalSince(asked) > 1 {
      asked = Date()
      try session.setBudget(governor.step(.init(thermal: thermal(), tokensPerSecond: 1000 / token.milliseconds)))
    }
  }
  let result = try session.result()
  print("\n\(result.tokens) tokens, budget \(result.achievedBudget)")
}

do {
  try await generate()
} catch {
  print("error: \(error)")
  exit(1)
}
