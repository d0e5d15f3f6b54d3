#include "budget/policy/policy_inputs.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "bundle/config/policy_scalars.h"

namespace sol_rt {

PolicyInputs::PolicyInputs(const std::vector<std::string>& names, int64_t horizon) : values_(names.size()), horizon_(horizon) {
  for (const std::string& name : names) {
    const auto found = std::find(std::begin(kPolicyScalars), std::end(kPolicyScalars), name);
    if (found == std::end(kPolicyScalars)) {
      throw Error(SOL_ERROR_BUNDLE, "policy: " + Brief(name) + " is no scalar that this version knows; use a newer one");
    }
    scalars_.push_back(static_cast<Scalar>(found - std::begin(kPolicyScalars)));
  }
  recent_.fill(previous_cost_);
}

const std::vector<float>& PolicyInputs::At(int64_t step, int64_t context, int32_t token, const Distribution& distribution, double budget) {
  position_ = step % horizon_;
  if (position_ == 0) {
    previous_ = -1;
    episode_cost_ = 0.0;
  }
  const auto value = [&](Scalar scalar) {
    switch (scalar) {
      case Scalar::kStepFraction:
        return static_cast<double>(position_) / static_cast<double>(horizon_);
      case Scalar::kBudget:
        return budget;
      case Scalar::kSpendDeviation:
        return position_ > 0 ? episode_cost_ / static_cast<double>(position_) - budget : 0.0;
      case Scalar::kEntropy:
        return distribution.Entropy();
      case Scalar::kTopProbability:
        return distribution.TopProbability();
      case Scalar::kSurprise:
        return -distribution.LogProbability(token);
      case Scalar::kLogContext:
        return std::log2(static_cast<double>(std::max<int64_t>(context, 1)) / 16);
      case Scalar::kMargin:
        return distribution.Margin();
      case Scalar::kPreviousCost:
        return previous_cost_;
      case Scalar::kRecentSpend:
        break;
    }
    double sum = 0.0;
    for (size_t index = 0; index < kRecent; ++index) sum += recent_[(oldest_ + index) % kRecent];
    return sum / kRecent;
  };
  for (size_t index = 0; index < scalars_.size(); ++index) values_[index] = static_cast<float>(value(scalars_[index]));
  return values_;
}

void PolicyInputs::Record(int64_t action, double relative_cost) {
  previous_ = action;
  episode_cost_ += relative_cost;
  previous_cost_ = relative_cost;
  recent_[oldest_] = relative_cost;
  oldest_ = (oldest_ + 1) % kRecent;
}

}  // namespace sol_rt
