#include "generate/token_mask.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"

namespace sol_rt {

TokenMask::TokenMask(AskMask ask, int32_t vocab_size)
    : ask_(std::move(ask)), last_(vocab_size % 32 == 0 ? ~0u : (1u << (vocab_size % 32)) - 1), words_((static_cast<size_t>(vocab_size) + 31) / 32) {}

bool TokenMask::Ask(const int32_t* tokens, size_t count) {
  std::fill(words_.begin(), words_.end(), 0u);
  position_ = count;
  answer_ = ask_(tokens, count, words_.data(), words_.size());
  words_.back() &= last_;
  return answer_ != Masked::kStop;
}

const uint32_t* TokenMask::Words() const {
  if (answer_ == Masked::kNone) return nullptr;
  if (std::all_of(words_.begin(), words_.end(), [](uint32_t word) { return word == 0; })) {
    UsageFault("the host's mask: got no allowed token at position " + std::to_string(position_) +
               " of the text, expected one or more; return SOL_MASK_STOP where the text is complete");
  }
  return words_.data();
}

}  // namespace sol_rt
