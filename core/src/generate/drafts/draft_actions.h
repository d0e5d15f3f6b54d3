// Decides which action drafts where look-up finds nothing, and for how long: by the share of its tokens that the text kept and by the times of its steps, as
// both were measured in the session. The first shares come of the losses in the bundle, the first times of the cost model. Where no action pays, the best one
// is tried now and then.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "budget/cost_model.h"
#include "bundle/config/config.h"
#include "generate/drafts/draft_pace.h"

namespace sol_rt {

class DraftActions {
 public:
  // Before each text: the actions and what their steps cost at this context. What was learned of an action stays.
  void Offer(const Config& config, const CostModel& cost, int64_t context);

  // Chooses the action for a draft of at most `most` tokens. Returns the tokens a step that it promises; 1 where none pays.
  double Choose(const DraftPace& pace, size_t most);
  // Begins a draft of that action and returns it; null for no draft.
  const Action* Begin();
  // True if one more token is worth its step.
  bool Goes(const DraftPace& pace, size_t most) const;
  // Learns from a step of the draft: its token had this probability.
  void Drew(DraftPace& pace, double probability, double ms);
  // Learns from the draft: of its `drafted` tokens the first `kept` were those of the text; one after them was compared, too.
  void Kept(size_t drafted, size_t kept);

 private:
  static constexpr size_t kClasses = 4;  // of a token's probability

  struct Candidate {
    Action action;
    double cost;                               // of a step over a dense one, by the cost model
    double kept;                               // share of the tokens
    std::array<double, kClasses> class_kept;  // the same by the token's class
  };

  double Step(const Candidate& candidate, const DraftPace& pace) const { return pace.Ratio(candidate.action, dense_, candidate.cost); }
  double Gain(const Candidate& candidate, const DraftPace& pace, size_t most) const;

  Action dense_;
  std::vector<Candidate> candidates_;
  size_t now_ = 0;               // the candidate that drafts
  std::vector<size_t> classes_;  // of the draft's tokens
  double gain_ = 1.0;            // tokens a step that a token of the draft has to promise
  double all_kept_ = 1.0;        // chance that the text keeps all tokens of the draft
  bool pays_ = false;            // else the draft is a try
  int idle_ = 0;                 // steps without a draft
  int wait_ = 0;                 // of them before a try
};

}  // namespace sol_rt
