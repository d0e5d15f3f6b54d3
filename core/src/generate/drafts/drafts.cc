#include "generate/drafts/drafts.h"

#include "generate/token_mask.h"

namespace sol_rt {

const std::vector<int32_t>& Drafts::Propose(const std::vector<int32_t>& text, const Action& action, size_t most, const uint32_t* mask) {
  tokens_.assign(1, text.back());
  if (most == 0) return tokens_;
  match_ = lookup_.Guess(text, most, tokens_);
  if (match_ > 0 && mask != nullptr && !Allows(mask, static_cast<size_t>(tokens_[1]))) tokens_.resize(1);
  tokens_.resize(1 + pace_.Choose(action, match_, tokens_.size() - 1));
  return tokens_;
}

Rows Drafts::Buffers() {
  const size_t count = tokens_.size();
  logits_.resize(count * static_cast<size_t>(vocab_));
  states_.resize(count * static_cast<size_t>(hidden_));
  return {count, logits_.data(), states_.data()};
}

StepOutput Drafts::First() {
  drafted_ += static_cast<int64_t>(tokens_.size()) - 1;
  used_ = 1;
  return Row(0);
}

StepOutput Drafts::Next() {
  ready_ = false;
  return Row(used_++);
}

bool Drafts::Follow(int32_t token) {
  if (used_ == 0) return true;
  if (used_ < tokens_.size() && tokens_[used_] == token) {
    ++accepted_;
    ready_ = true;
    return true;
  }
  pace_.Kept(match_, tokens_.size() - 1, used_ - 1);
  const bool all = used_ == tokens_.size();
  used_ = 0;
  return all;
}

void Drafts::Drop() {
  if (used_ > 0) pace_.Kept(match_, used_ - 1, used_ - 1);
  used_ = 0;
  ready_ = false;
}

StepOutput Drafts::Row(size_t index) const {
  return {states_.data() + index * static_cast<size_t>(hidden_), MakeDistribution(logits_.data() + index * static_cast<size_t>(vocab_), vocab_)};
}

}  // namespace sol_rt
