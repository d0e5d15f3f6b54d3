#include "generate/drafts/ngram_lookup.h"

#include <algorithm>

namespace sol_rt {
namespace {

constexpr int kMostSources = 16;  // compared, of one n-gram

// Hash of the `size` tokens that end at `place`.
uint64_t Hash(const std::vector<int32_t>& text, size_t place, size_t size) {
  uint64_t hash = 0;
  for (size_t i = place + 1 - size; i <= place; ++i) hash = (hash ^ static_cast<uint32_t>(text[i])) * 0x9e3779b97f4a7c15u;
  return hash;
}

// The number of tokens up to `place` equal those up to the text's end.
size_t CommonEnd(const std::vector<int32_t>& text, size_t place) {
  const size_t most = std::min(NgramLookup::kLongest, place + 1);
  size_t length = 0;
  while (length < most && text[place - length] == text[text.size() - 1 - length]) ++length;
  return length;
}

}  // namespace

size_t NgramLookup::Guess(const std::vector<int32_t>& text, size_t most, std::vector<int32_t>& draft) {
  Index(text);
  size_t longest = 0, source = 0;
  for (size_t size = kSizes; size > 0 && longest == 0; --size) {
    if (text.size() <= size) continue;
    const auto found = last_[size - 1].find(Hash(text, text.size() - 1, size));
    if (found == last_[size - 1].end()) continue;
    size_t place = found->second;
    for (int tries = 0; tries < kMostSources; ++tries) {
      const size_t length = CommonEnd(text, place);
      if (length >= size && length > longest) {
        longest = length;
        source = place;
      }
      if (size < kSizes || longest == kLongest || previous_[place] == place) break;
      place = previous_[place];
    }
  }
  if (longest == 0) return 0;
  const size_t first = draft.size();
  for (size_t i = 0; i < most; ++i) {  // a source that reaches the text's end goes on with its own guesses
    const size_t place = source + 1 + i;
    draft.push_back(place < text.size() ? text[place] : draft[first + place - text.size()]);
  }
  return longest;
}

// The last token is left out: nothing follows it yet.
void NgramLookup::Index(const std::vector<int32_t>& text) {
  for (size_t place = previous_.size(); place + 1 < text.size(); ++place) {
    previous_.push_back(place);
    for (size_t size = 1; size <= std::min(kSizes, place + 1); ++size) {
      const auto [entry, added] = last_[size - 1].try_emplace(Hash(text, place, size), place);
      if (!added) {
        if (size == kSizes) previous_[place] = entry->second;
        entry->second = place;
      }
    }
  }
}

}  // namespace sol_rt
