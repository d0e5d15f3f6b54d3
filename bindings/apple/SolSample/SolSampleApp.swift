// A prompt, text that streams, and a slider that moves the budget meanwhile; the governor may move it instead, after the device's heat and battery.
// Put this file into a SwiftUI app with the package bindings/swift and a package of ONNX Runtime that is linked in; the bundle is the folder `bundle`
// among the app's resources.
import Foundation
import SolRt
import SwiftUI

#if os(iOS)
  import UIKit
#endif

/// Of ONNX Runtime, by its name in C: packages of it give their modules different names.
@_silgen_name("OrtGetApiBase") private func ortGetApiBase() -> UnsafeRawPointer

@main
struct SolSampleApp: App {
  var body: some Scene { WindowGroup { ContentView() } }
}

@MainActor
final class Writer: ObservableObject {
  @Published var text = ""
  @Published var figures = ""
  @Published var budget = 0.6 { didSet { try? session?.setBudget(budget) } }
  @Published var governed = false { didSet { follow() } }
  @Published private(set) var running: Task<Void, Never>?
  private var model: SolModel?
  private var session: SolSession?
  private var governing: Task<Void, Never>?
  private var rate: Double?

  func toggle(_ prompt: String) {
    if let running {
      running.cancel()
      return
    }
    running = Task {
      do { try await write(prompt) } catch is CancellationError {} catch { figures = "\(error)" }
      rate = nil
      running = nil
    }
  }

  private func write(_ prompt: String) async throws {
    if model == nil {
      let folder = Bundle.main.resourceURL!.appendingPathComponent("bundle").path
      model = try await Task.detached { try SolModel(SolRuntime(ortApiBase: ortGetApiBase(), spin: false), folder: folder) }.value
      session = try model!.session()
    }
    text = prompt
    for try await token in try session!.generate(model!.encode(prompt), GenerateOptions(budget: budget, maxNewTokens: 300)) {
      text += token.text
      rate = 1000 / token.milliseconds
      figures = String(format: "budget %.2f of %.2f, %.1f tokens a second, ", token.achievedBudget, token.requestedBudget, rate!) + token.action
    }
  }

  /// Every two seconds: device to governor to budget.
  private func follow() {
    governing?.cancel()
    guard governed, var governor = try? SolGovernor(lowestBudget: 0.3, highestBudget: 1) else { return }
    governing = Task {
      while !Task.isCancelled {
        if let next = try? governor.step(Device.reading(rate: rate)) { budget = next }
        try? await Task.sleep(nanoseconds: 2_000_000_000)
      }
    }
  }
}

@MainActor
enum Device {
  static func reading(rate: Double?) -> SolGovernor.Reading {
    var reading = SolGovernor.Reading(thermal: thermal, tokensPerSecond: rate)
    #if os(iOS)
      UIDevice.current.isBatteryMonitoringEnabled = true
      if UIDevice.current.batteryLevel >= 0 { reading.battery = Double(UIDevice.current.batteryLevel) }
      if UIDevice.current.batteryState != .unknown { reading.charging = UIDevice.current.batteryState != .unplugged }
    #endif
    return reading
  }

  /// On the governor's scale: at 1 the system begins to throttle.
  private static var thermal: Double? {
    switch ProcessInfo.processInfo.thermalState {
    case .nominal: return 0.5
    case .fair: return 0.85
    case .serious: return 0.95
    case .critical: return 1.0
    @unknown default: return nil
    }
  }
}

struct ContentView: View {
  @StateObject private var writer = Writer()
  @State private var prompt = "Once upon a time"

  var body: some View {
    VStack(alignment: .leading, spacing: 12) {
      TextField("Prompt", text: $prompt)
      HStack {
        Slider(value: $writer.budget, in: 0...1)
        Text(String(format: "%.2f", writer.budget)).monospacedDigit()
      }
      Toggle("Follow battery and heat", isOn: $writer.governed)
      Button(writer.running == nil ? "Generate" : "Stop") { writer.toggle(prompt) }
      Text(writer.figures).font(.caption).foregroundColor(.secondary)
      ScrollView { Text(writer.text).frame(maxWidth: .infinity, alignment: .leading) }
    }
    .padding()
  }
}
