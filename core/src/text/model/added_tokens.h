// Tokens beside the model's vocabulary, which are found in the text before anything else: special tokens and others.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "text/model/tokenizer_file.h"
#include "text/model/vocabulary.h"
#include "text/unicode/regex.h"

namespace sol_rt {

class Normalizer;

// Finds texts in another.
class TextMatcher {
 public:
  void Add(std::string_view text, int32_t value);  // a later one replaces an equal earlier one

  struct Found {
    size_t end;
    int32_t value;
  };
  // The texts that begin at `at`, shortest first.
  void At(std::string_view text, size_t at, std::vector<Found>& found) const;
  bool MayBeginWith(char byte) const { return begins_[static_cast<uint8_t>(byte)]; }
  bool empty() const { return values_.empty(); }

 private:
  std::array<bool, 256> begins_{};
  std::unordered_map<uint64_t, uint32_t> children_;  // of a node (upper bits) by a byte (lower 8 bits); node 0 is the root
  std::unordered_map<uint32_t, int32_t> values_;     // of the nodes where a text ends
  uint32_t nodes_ = 1;
};

class AddedTokens {
 public:
  struct Token {
    std::string content;
    std::string written;  // the content as the normalizer makes it, if the token is looked for in normalized text
    bool single_word, strips_left, strips_right, normalized, special;
  };
  // A stretch of a text: an added token, or text between them (`token` is negative).
  struct Part {
    size_t begin, end;
    int32_t token;
  };
  // Stretches that came from a user, in bytes, in order. Special tokens that touch one are text.
  using UserParts = std::vector<std::pair<size_t, size_t>>;

  // Reads `added_tokens`. `end_ids` count as special.
  AddedTokens(const Settings& file, const Vocabulary& vocabulary, const Normalizer& normalizer, const std::vector<int32_t>& end_ids);

  // Cuts a text at added tokens, those that are looked for in the text as it is, or those in normalized text. `special`: whether special tokens are found.
  std::vector<Part> Cut(std::string_view text, bool normalized, bool special, const UserParts* user = nullptr, size_t offset = 0) const;

  const Token* Find(int32_t id) const;
  int32_t Id(std::string_view content) const;  // or Vocabulary::kNone
  bool IsSpecial(std::string_view content) const { return special_.count(std::string(content)) != 0; }
  const std::unordered_map<int32_t, Token>& tokens() const { return tokens_; }
  int32_t LastId() const;
  // Number of contents that the vocabulary lacks.
  size_t CountBeside(const Vocabulary& vocabulary) const;

 private:
  void Add(Token token, const Vocabulary& vocabulary, const Normalizer& normalizer, uint32_t& next_id, Regex::Effort& effort);

  std::unordered_map<std::string, int32_t> ids_;
  std::unordered_map<int32_t, Token> tokens_;
  std::unordered_set<std::string> special_;
  TextMatcher plain_, normalized_;
};

}  // namespace sol_rt
