#include "generate/drafts/drafts.h"

#include "generate/token_mask.h"

namespace sol_rt {

const Action* Drafts::Propose(const std::vector<int32_t>& text, const Action& action, size_t most, const uint32_t* mask) {
  tokens_.assign(1, text.back());
  stepping_ = nullptr;
  if (most == 0 || !pace_.Measured(action)) return nullptr;
  const double gain = actions_ == nullptr ? 1.0 : actions_->Choose(pace_, most);
  match_ = lookup_.Guess(text, most, tokens_);
  if (match_ > 0 && mask != nullptr && !Allows(mask, static_cast<size_t>(tokens_[1]))) tokens_.resize(1);
  tokens_.resize(1 + pace_.Choose(action, match_, tokens_.size() - 1, gain));
  if (actions_ != nullptr && tokens_.size() == 1) stepping_ = actions_->Begin();
  return stepping_;
}

void Drafts::Add(int32_t token, double probability, double ms) {
  tokens_.push_back(token);
  actions_->Drew(pace_, probability, ms);
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
  Learn(tokens_.size() - 1, used_ - 1);
  const bool all = used_ == tokens_.size();
  used_ = 0;
  return all;
}

void Drafts::Drop() {
  if (used_ > 0) Learn(used_ - 1, used_ - 1);
  used_ = 0;
  ready_ = false;
}

void Drafts::Learn(size_t drafted, size_t kept) {
  if (stepping_ == nullptr) {
    pace_.Kept(match_, drafted, kept);
  } else {
    pace_.Saved(kept);
    actions_->Kept(drafted, kept);
  }
}

StepOutput Drafts::Row(size_t index) const {
  return {states_.data() + index * static_cast<size_t>(hidden_), MakeDistribution(logits_.data() + index * static_cast<size_t>(vocab_), vocab_)};
}

}  // namespace sol_rt
