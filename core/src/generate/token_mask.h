// The tokens that may come next, as the host says before each pick.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace sol_rt {

enum class Masked { kNone, kFilled, kStop };

// Fills `words`, which are 0, after the first `count` tokens of the text: bit t % 32 of words[t / 32] is token t.
using AskMask = std::function<Masked(const int32_t* tokens, size_t count, uint32_t* words, size_t num_words)>;

class TokenMask {
 public:
  TokenMask(AskMask ask, int32_t vocab_size);

  // Asks what may follow the first `count` tokens of the text. False if nothing may: the text is complete.
  bool Ask(const int32_t* tokens, size_t count);
  // Of the last answer, [ceil(vocab / 32)]; null where every token may follow. Throws SOL_ERROR_USAGE if no token may.
  const uint32_t* Words() const;

 private:
  const AskMask ask_;
  const uint32_t last_;  // bits of the last word that are tokens
  std::vector<uint32_t> words_;
  Masked answer_ = Masked::kNone;
  size_t position_ = 0;  // in the text
};

inline bool Allows(const uint32_t* mask, size_t token) { return (mask[token / 32] >> (token % 32) & 1) != 0; }

}  // namespace sol_rt
