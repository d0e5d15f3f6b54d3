// Ends a text before a stop string, even if the stop string arrives in pieces.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace sol_rt {

// Passes text through until a stop string appears. Holds back text that may be the beginning of one.
class StopStrings {
 public:
  // Throws SOL_ERROR_USAGE for an empty string.
  explicit StopStrings(std::vector<std::string> strings);

  // Adds text, whole characters. Returns the text that may be shown now, and whether a stop string was found. The stop string and all text after it are never
  // returned.
  std::pair<std::string, bool> Feed(const std::string& text);
  // The text that is still held back. Call it at the end of a text that no stop string ended.
  std::string Flush();

 private:
  std::vector<std::string> strings_;
  std::string held_;
};

}  // namespace sol_rt
