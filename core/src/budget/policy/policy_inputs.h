// The scalar inputs of a policy over one run of decode steps (docs/reference/bundle-details.md section 5), as sol_rt/bundle/policy_inputs.py defines them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/distribution.h"

namespace sol_rt {

class PolicyInputs {
 public:
  // Throws SOL_ERROR_BUNDLE for a name that is not known.
  PolicyInputs(const std::vector<std::string>& names, int64_t horizon);

  // The scalars before decode step `step` of the run, in the order of the names. A new episode begins every `horizon` steps. `budget` is the
  // requested share of the dense cost. Valid until the next call.
  const std::vector<float>& At(int64_t step, int64_t context, int32_t token, const Distribution& distribution, double budget);
  // Records a finished step: `action` is its place in the policy's list, -1 if the list lacks it.
  void Record(int64_t action, double relative_cost);

  int64_t position() const { return position_; }  // index of the step within its episode
  int64_t previous() const { return previous_; }  // place of the last step's action; -1 at the start of an episode

 private:
  // In the order of kPolicyScalars.
  enum class Scalar {
    kStepFraction,
    kBudget,
    kSpendDeviation,
    kEntropy,
    kTopProbability,
    kSurprise,
    kLogContext,
    kMargin,
    kPreviousCost,
    kRecentSpend
  };
  static constexpr size_t kRecent = 16;  // past steps that `recent_spend` averages over

  std::vector<Scalar> scalars_;
  std::vector<float> values_;
  int64_t horizon_, position_ = 0, previous_ = -1;
  double episode_cost_ = 0.0, previous_cost_ = 1.0;  // the prompt ran dense
  std::array<double, kRecent> recent_;
  size_t oldest_ = 0;
};

}  // namespace sol_rt
