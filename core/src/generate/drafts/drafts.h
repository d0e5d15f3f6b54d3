// Holds a draft of the next tokens and the results of the run that checks it. A row of results counts only if the text goes on with the tokens that led to it,
// so the text is that of single steps.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/engine.h"
#include "generate/drafts/draft_actions.h"
#include "generate/drafts/draft_pace.h"
#include "generate/drafts/ngram_lookup.h"

namespace sol_rt {

class Drafts {
 public:
  // `actions` draft where nothing is found in the text; null: none do.
  Drafts(const ModelDims& model, DraftPace& pace, DraftActions* actions)
      : vocab_(model.vocab_size), hidden_(model.hidden_size), pace_(pace), actions_(actions) {
    pace.BeginText();
  }

  // Begins the next run with the last token of the text and at most `most` guesses from it. `mask` is of the token after the text; null allows all. Returns the
  // action whose steps are to guess instead, by `Goes` and `Add`; null for none.
  const Action* Propose(const std::vector<int32_t>& text, const Action& action, size_t most, const uint32_t* mask);
  bool Goes(size_t most) const { return actions_->Goes(pace_, most); }
  void Add(int32_t token, double probability, double ms);
  const std::vector<int32_t>& tokens() const { return tokens_; }  // of the run
  // Buffers of that run's results, a row for each token, and the output of the first token when they are filled.
  Rows Buffers();
  StepOutput First();

  // After each token of the text. False if the cache then holds tokens that are not of the text, after it: their rows are void.
  bool Follow(int32_t token);
  // True if the row of the text's last token is there, which `Next` returns: its step needs no run.
  bool ready() const { return ready_; }
  StepOutput Next();
  // Voids the rows that are left.
  void Drop();

  int64_t drafted() const { return drafted_; }    // tokens so far
  int64_t accepted() const { return accepted_; }  // that are of the text
  uint64_t Bytes() const { return (logits_.capacity() + states_.capacity()) * sizeof(float); }

 private:
  StepOutput Row(size_t index) const;
  void Learn(size_t drafted, size_t kept);

  const int32_t vocab_, hidden_;
  DraftPace& pace_;
  DraftActions* const actions_;
  const Action* stepping_ = nullptr;  // drafted the run; null: it was found in the text
  NgramLookup lookup_;
  std::vector<int32_t> tokens_;  // of the run
  size_t match_ = 0;
  std::vector<float> logits_, states_;  // [tokens, vocab] and [tokens, hidden]
  size_t used_ = 0;                     // rows of the run that were handed out; 0 without a run
  bool ready_ = false;
  int64_t drafted_ = 0, accepted_ = 0;
};

}  // namespace sol_rt
