// Text to tokens and back, from the bundle's `tokenizer.json`.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sol_rt {

// Threads may share one.
class Tokenizer {
 public:
  // Throws SOL_ERROR_TEXT for a kind of tokenizer that the core does not know, SOL_ERROR_BUNDLE for a damaged file. `path` is for messages. Added tokens
  // among `end_ids`, which end a text, count as special also if the file does not say so.
  static std::shared_ptr<const Tokenizer> FromJson(std::string_view json, const std::string& path, const std::vector<int32_t>& end_ids = {});
  virtual ~Tokenizer() = default;

  // Tokens of a text. With `parse_special`, special tokens that are written in the text become those tokens. Throws SOL_ERROR_TEXT for invalid UTF-8;
  // without `parse_special`, SOL_ERROR_USAGE if the text makes a special token all the same.
  virtual std::vector<int32_t> Encode(std::string_view text, bool add_special, bool parse_special) const = 0;

  // Tokens of a prompt that a chat template made. `user`: the stretches that came from messages, in bytes, in order; what they touch is plain text, and
  // special tokens between them become those tokens. Throws SOL_ERROR_TEXT for invalid UTF-8, SOL_ERROR_USAGE if the text of a message makes a special token.
  virtual std::vector<int32_t> EncodeRendered(std::string_view text, const std::vector<std::pair<size_t, size_t>>& user) const = 0;

  // Text of the tokens; ids that no token has give none.
  virtual std::string Decode(const int32_t* tokens, size_t count, bool skip_special) const = 0;
  virtual std::optional<int32_t> TokenId(std::string_view token) const = 0;  // of a token as the vocabulary writes it
  virtual int32_t LastId() const = 0;                                        // the largest id of a token; -1 in an empty vocabulary
  virtual int32_t Size() const = 0;                                          // number of tokens, added tokens included
};

}  // namespace sol_rt
