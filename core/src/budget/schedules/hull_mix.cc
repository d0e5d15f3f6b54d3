#include "budget/schedules/hull_mix.h"

#include <algorithm>

namespace sol_rt {

void HullMix::Find(int64_t context) {
  const double allowance = controller_.Allowance(context);
  const double* costs = controller_.RelativeCosts(context);
  const std::vector<Corner>& corners = hull_->Corners(context);
  cheap_ = dear_ = corners.back().place;
  for (size_t index = 1; index < corners.size(); ++index) {
    if (allowance < costs[corners[index].place]) {
      cheap_ = corners[index - 1].place;
      dear_ = corners[index].place;
      break;
    }
  }
  const double gap = costs[dear_] - costs[cheap_];
  share_ = gap > 0 ? std::min(std::max((allowance - costs[cheap_]) / gap, 0.0), 1.0) : 1.0;
  gap_ = std::max(gap, 0.0);
}

bool HullMix::WithRound(bool dear, const StepSeen& seen) {
  if (seen.round == nullptr || !controller_.moved() || !mixes()) return dear;
  const auto shares = [&](bool side) {
    const Action& own = controller_.actions()[side ? dear_ : cheap_];
    return std::any_of(seen.round->begin(), seen.round->end(), [&](const Action& other) { return other.SharesRead(own); });
  };
  if (shares(dear) || !shares(!dear)) return dear;
  return controller_.Allows(dear ? cheap_ : dear_, seen.context) != dear;
}

double HullMix::owed() const { return carry_ + share_ + (gap_ > 0 ? debt_ / gap_ : 0.0); }

size_t HullMix::Give(bool dear, int64_t context) {
  const bool due = IsDue(carry_ + share_);
  carry_ += share_ - (due ? 1.0 : 0.0);
  if (due != dear) debt_ += due ? gap_ : -gap_;
  return controller_.NearestAllowed(dear ? dear_ : cheap_, context);
}

}  // namespace sol_rt
