// Runs the policy. A session has its own runner, because the policy may have a state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace sol_rt {

// Inputs of one run of the policy's graph. Valid until the next step.
struct PolicyQuestion {
  const float* hidden;                // [hidden] of the step before
  int32_t token;                      // which the step is to process
  const std::vector<float>* scalars;  // in the order of PolicySpec::scalars
  int64_t previous_action;            // -1 at the start of an episode
  int64_t step;                       // 0 to horizon - 1
};

class PolicyRunner {
 public:
  virtual ~PolicyRunner() = default;
  virtual void Reset() = 0;  // forgets the episode
  // Logits over the policy's actions, valid until the next call. Throws SOL_ERROR_NUMERIC if one is not finite.
  const std::vector<float>& Decide(const PolicyQuestion& question);

 protected:
  PolicyRunner(std::string file, size_t scalars) : file_(std::move(file)), scalars_(scalars) {}
  virtual const std::vector<float>& Run(const PolicyQuestion& question) = 0;

 private:
  std::string file_;  // of the bundle, for errors
  size_t scalars_;
};

}  // namespace sol_rt
