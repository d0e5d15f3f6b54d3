// Decodes tokens that arrive one by one, as sol_rt/text/tokenizer.py does.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace sol_rt {

// Its pieces joined are the text of all tokens, and no piece ends inside a character. Each token is decoded together with the piece before it, because
// decoders look back: a token has its leading space only if another token precedes it.
class TextStream {
 public:
  // `context` is the prompt's tokens, which precede the stream; their text is not returned.
  TextStream(std::shared_ptr<const Tokenizer> tokenizer, const std::vector<int32_t>& context, bool skip_special = true);

  // Adds a token. Returns the text that is now certain; empty while a character is incomplete.
  std::string Add(int32_t token);
  // The rest of the text: U+FFFD if the text stops inside a character.
  std::string Flush();

 private:
  std::string Decoded() const;
  std::string GiveOut(const std::string& text);

  std::shared_ptr<const Tokenizer> tokenizer_;
  bool skip_special_;
  std::vector<int32_t> tokens_;
  size_t fresh_ = 0;  // index of the first token whose text was not yet returned completely
  size_t given_ = 0;  // characters of the tokens' text that were returned
};

}  // namespace sol_rt
