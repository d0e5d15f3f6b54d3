// Ranks a policy's preference at a step among those of the last steps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sol_rt {

// Logits of the last 128 steps at which the policy was asked, for every action: two actions can be compared as soon as a step mixes them.
class RankHistory {
 public:
  explicit RankHistory(size_t actions) : past_(actions * kSteps) {}

  // Share of the steps before at which the logit of `dear` exceeded that of `cheap` by less than it does now. Equal steps count half, and 8 such steps are
  // counted beside the real ones. Keeps the step.
  double Add(const std::vector<float>& logits, int64_t cheap, int64_t dear);

 private:
  static constexpr size_t kSteps = 128;
  std::vector<float> past_;  // [actions, kSteps]
  size_t count_ = 0, next_ = 0;
};

}  // namespace sol_rt
