// Text to tokens and back, from the bundle's `tokenizer.json`.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace sol_rt {

class Tokenizer {
 public:
  // Throws SOL_ERROR_TEXT for a kind of tokenizer that the core does not know, SOL_ERROR_BUNDLE for a damaged file. `path` is for messages.
  static std::shared_ptr<const Tokenizer> FromJson(std::string_view json, const std::string& path);
  virtual ~Tokenizer() = default;

  // Throws SOL_ERROR_TEXT for invalid UTF-8.
  virtual std::vector<int32_t> Encode(std::string_view text, bool add_special, bool parse_special) const = 0;
  virtual std::string Decode(const int32_t* tokens, size_t count, bool skip_special) const = 0;
  virtual std::optional<int32_t> TokenId(std::string_view token) const = 0;
  virtual int32_t LastId() const = 0;  // the largest id of a token; -1 in an empty vocabulary
};

}  // namespace sol_rt
