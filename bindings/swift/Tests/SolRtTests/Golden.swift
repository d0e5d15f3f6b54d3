import Foundation
import SolRt

/// One line of cases.tsv, whose first lines describe its fields.
struct GoldenCase {
  let name: String
  let prompt: [Int32]
  var options = GenerateOptions()
  /// Decode step to the budget that the host sets before it.
  var budgetAt: [Int: Double] = [:]
  /// True if only hosts with native operators play it.
  var nativeOnly = false
  let tokens: [Int32]
  let actions: [String]
  let costs: [Double]
  let text: String

  static func all(native: Bool) throws -> [GoldenCase] {
    let lines = try String(contentsOfFile: variable("SOL_TEST_CASES"), encoding: .utf8).split(separator: "\n")
    return try lines.filter { !$0.hasPrefix("#") }.map(GoldenCase.init).filter { native || !$0.nativeOnly }
  }

  private init(_ line: Substring) throws {
    let fields = line.split(separator: "\t", omittingEmptySubsequences: false)
    func words(_ index: Int) -> [String] { fields[index].split(separator: " ").map(String.init) }
    name = String(fields[0])
    prompt = words(1).map { Int32($0)! }
    tokens = words(3).map { Int32($0)! }
    actions = words(4)
    costs = words(5).map { Double($0)! }
    text = try JSONDecoder().decode([String].self, from: Data("[\(fields[6])]".utf8))[0]
    for word in words(2) {
      let key = String(word.prefix { $0 != "=" })
      let value = String(word.dropFirst(key.count + 1))
      switch key {
      case "budget": options.budget = Double(value)!
      case "schedule": options.schedule = value
      case "max_loss": options.maxLoss = Double(value)!
      case "tokens_per_second": options.tokensPerSecond = Double(value)!
      case "kv_density": options.kvDensity = Double(value)!
      case "channel_density": options.channelDensity = Double(value)!
      case "bits": options.bits = Double(value)!
      case "max_new_tokens": options.maxNewTokens = Int32(value)!
      case "do_sample": options.doSample = ["1", "true", "True"].contains(value)
      case "temperature": options.temperature = Double(value)!
      case "top_k": options.topK = Int32(value)!
      case "top_p": options.topP = Double(value)!
      case "min_p": options.minP = Double(value)!
      case "repetition_penalty": options.repetitionPenalty = Double(value)!
      case "presence_penalty": options.presencePenalty = Double(value)!
      case "frequency_penalty": options.frequencyPenalty = Double(value)!
      case "seed": options.seed = Int64(value)!
      case "native": nativeOnly = value == "1"
      case "budget_at":
        for pair in value.split(separator: ",") {
          let parts = pair.split(separator: ":")
          budgetAt[Int(parts[0])!] = Double(parts[1])!
        }
      default: fatalError("\(name): unknown option \(word)")
      }
    }
  }
}

/// ../../test.sh sets the variables SOL_TEST_..., which ../../../test-lib.sh describes.
func variable(_ name: String) -> String {
  guard let value = ProcessInfo.processInfo.environment[name] else { fatalError("\(name) is not set: run test.sh") }
  return value
}
