// Guesses the next tokens of a text from the text itself: those that followed where it ended alike before.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace sol_rt {

class NgramLookup {
 public:
  static constexpr size_t kLongest = 16;  // tokens of an end that are compared

  // Appends at most `most` guesses to `draft`. `text` is that of the call before, or begins with it. Returns how many tokens before the guesses are equal to
  // those before their source: 1 to kLongest, or 0 where nothing was found. The longest of the newest sources with three tokens or more is taken, else the
  // newest with two, else with one.
  size_t Guess(const std::vector<int32_t>& text, size_t most, std::vector<int32_t>& draft);

 private:
  static constexpr size_t kSizes = 3;  // n-grams of 1 to 3 tokens are found

  void Index(const std::vector<int32_t>& text);

  // By n-gram of each size, the place of its last token where it was seen last. Hashes may collide: a source is compared before it is used.
  std::array<std::unordered_map<uint64_t, size_t>, kSizes> last_;
  std::vector<size_t> previous_;  // by place, where the n-gram of kSizes was seen before; the place itself where it was not
};

}  // namespace sol_rt
