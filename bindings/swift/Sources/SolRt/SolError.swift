import CSolRt

/// An error of the core: one line that says what, where, got, expected, and the next step.
public struct SolError: Error, CustomStringConvertible, Sendable {
  /// Kind of the error. The numbers are those of sol_rt.h.
  public enum Code: UInt32, Sendable {
    /// The call is wrong: a value out of range, options that contradict each other, or an object that is closed.
    case usage = 1
    /// The bundle is missing, truncated, foreign or inconsistent.
    case bundle
    /// ONNX Runtime is missing, too old, or failed.
    case runtime
    /// Prompt or text does not fit the context, or the KV cache does not fit the memory.
    case context
    /// The model gave numbers that are not finite.
    case numeric
    /// Another thread is using the session.
    case busy
    /// `SolSession.cancel` or `close` ended the call.
    case cancelled
    /// A file cannot be written; what was there stays as it was.
    case write
    /// Out of memory.
    case memory
    /// The text is not valid, or the bundle has no tokenizer or no chat segments that the core can use.
    case text
    /// A callback asked to stop.
    case host
    /// A fault of the core.
    case `internal` = 99
  }

  public let code: Code
  public let description: String

  static func usage(_ message: String) -> SolError { SolError(code: .usage, description: message) }
}

/// Throws an error of the core, and frees it.
func check(_ error: OpaquePointer?) throws {
  guard let error else { return }
  defer { sol_error_release(error) }
  throw SolError(code: SolError.Code(rawValue: UInt32(sol_error_code(error).rawValue)) ?? .internal, description: String(cString: sol_error_message(error)))
}

func string(_ text: UnsafePointer<CChar>?) -> String { text.map { String(cString: $0) } ?? "" }

/// Refuses what C would cut off.
func checked(_ text: String) throws -> String {
  if text.utf8.contains(0) { throw SolError.usage("a string contains the character U+0000: remove it") }
  return text
}

/// Calls `body` with C strings, which are valid during that call.
func withCStrings<T>(_ texts: [String], _ body: ([UnsafePointer<CChar>?]) throws -> T) throws -> T {
  var copies: [UnsafePointer<CChar>?] = []
  copies.reserveCapacity(texts.count)
  defer { for copy in copies { copy?.deallocate() } }
  for text in texts {
    let bytes = try checked(text).utf8CString
    let copy = UnsafeMutablePointer<CChar>.allocate(capacity: bytes.count)
    bytes.withUnsafeBufferPointer { copy.initialize(from: $0.baseAddress!, count: $0.count) }
    copies.append(copy)
  }
  return try body(copies)
}

/// Calls `body` with a C string, or with NULL.
func withCString<T>(_ text: String?, _ body: (UnsafePointer<CChar>?) throws -> T) throws -> T {
  guard let text else { return try body(nil) }
  return try checked(text).withCString(body)
}

/// Calls `fill(room, capacity, count)`, once more with more room where the result does not fit, and returns the result.
func filled<T>(_ zero: T, _ fill: (UnsafeMutablePointer<T>, Int, UnsafeMutablePointer<Int>) -> OpaquePointer?) throws -> [T] {
  var capacity = 512
  while true {
    var count = 0
    var room = [T](repeating: zero, count: capacity)
    try check(room.withUnsafeMutableBufferPointer { fill($0.baseAddress!, capacity, &count) })
    if count <= capacity { return Array(room[..<count]) }
    capacity = count
  }
}
