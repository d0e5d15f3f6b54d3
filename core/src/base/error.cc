#include "base/error.h"

#include "base/text/printable.h"

namespace sol_rt {
namespace {

constexpr size_t kLongest = 1000;
constexpr size_t kLongestPart = 200;
constexpr size_t kBrief = 60;

// At most `limit` bytes, whole characters.
std::string Clip(std::string text, size_t limit) {
  if (text.size() <= limit) return text;
  while (limit > 0 && (static_cast<unsigned char>(text[limit]) & 0xC0) == 0x80) --limit;
  text.resize(limit);
  return text;
}

}  // namespace

Error::Error(sol_code code, std::string message) : code_(code), message_(Clip(Printable(message), kLongest)) {}

std::string Brief(const std::string& text) { return Cut(Quoted(Cut(text, kBrief + 1)), kBrief); }

void BundleFault(const std::string& path, const std::string& key, const std::string& got, const std::string& expected, const std::string& hint) {
  const std::string where = key.empty() ? path : path + ": " + Cut(key, kLongestPart);
  throw Error(SOL_ERROR_BUNDLE, where + ": got " + Cut(got, kLongestPart) + ", expected " + Cut(expected, kLongestPart) + "; " + hint);
}

void UsageFault(const std::string& message) { throw Error(SOL_ERROR_USAGE, message); }

}  // namespace sol_rt
