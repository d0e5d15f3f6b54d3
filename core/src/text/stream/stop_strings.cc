#include "text/stream/stop_strings.h"

#include <algorithm>

#include "base/error.h"

namespace sol_rt {
namespace {

// Length of the longest suffix of `text` that `string` begins with; shorter than `string` itself.
size_t Overlap(const std::string& text, const std::string& string) {
  for (size_t length = std::min(text.size(), string.size() - 1); length > 0; --length) {
    if (text.compare(text.size() - length, length, string, 0, length) == 0) return length;
  }
  return 0;
}

}  // namespace

StopStrings::StopStrings(std::vector<std::string> strings) : strings_(std::move(strings)) {
  for (const std::string& string : strings_) {
    if (string.empty()) UsageFault("stop string: got an empty one, expected at least one character");
  }
}

std::pair<std::string, bool> StopStrings::Feed(const std::string& text) {
  std::string all = std::move(held_) + text;
  held_.clear();
  size_t first = std::string::npos;
  for (const std::string& string : strings_) first = std::min(first, all.find(string));
  if (first != std::string::npos) return {all.substr(0, first), true};
  size_t keep = 0;
  for (const std::string& string : strings_) keep = std::max(keep, Overlap(all, string));
  held_ = all.substr(all.size() - keep);
  all.resize(all.size() - keep);
  return {std::move(all), false};
}

std::string StopStrings::Flush() { return std::exchange(held_, std::string()); }

}  // namespace sol_rt
