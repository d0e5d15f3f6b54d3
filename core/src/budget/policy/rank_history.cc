#include "budget/policy/rank_history.h"

#include <algorithm>

namespace sol_rt {
namespace {

constexpr double kPrior = 8.0;  // steps

}  // namespace

double RankHistory::Add(const std::vector<float>& logits, int64_t cheap, int64_t dear) {
  const auto low = static_cast<size_t>(cheap), high = static_cast<size_t>(dear);
  const float now = logits[high] - logits[low];
  const float *lows = &past_[low * kSteps], *highs = &past_[high * kSteps];
  int less = 0, equal = 0;
  for (size_t step = 0; step < count_; ++step) {
    const float then = highs[step] - lows[step];
    less += then < now;
    equal += then == now;
  }
  const double rank = (less + 0.5 * equal + 0.5 * kPrior) / (static_cast<double>(count_) + kPrior);
  for (size_t action = 0; action < logits.size(); ++action) past_[action * kSteps + next_] = logits[action];
  next_ = (next_ + 1) % kSteps;
  count_ = std::min(count_ + 1, kSteps);
  return rank;
}

}  // namespace sol_rt
