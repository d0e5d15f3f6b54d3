// Runs the policy's graph. A session has its own runner, because the policy has a state.
#pragma once

#include <cstdint>
#include <vector>

namespace sol_rt {

class PolicyRunner {
 public:
  virtual ~PolicyRunner() = default;
  virtual void Reset() = 0;  // forgets the episode
  // Logits over the policy's actions. `scalars` are in the order of PolicySpec::scalars, `previous_action` is -1 at the start of an episode, `step` is
  // 0 to horizon - 1. The result is valid until the next call.
  virtual const std::vector<float>& Decide(const float* hidden, int32_t token, const std::vector<float>& scalars, int64_t previous_action, int64_t step) = 0;
};

}  // namespace sol_rt
