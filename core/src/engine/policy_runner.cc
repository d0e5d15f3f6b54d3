#include "engine/policy_runner.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace sol_rt {

const std::vector<float>& PolicyRunner::Decide(const PolicyQuestion& question) {
  if (question.scalars->size() != scalars_) {
    throw Error(SOL_ERROR_INTERNAL, "policy: got " + std::to_string(question.scalars->size()) + " scalars, expected " + std::to_string(scalars_));
  }
  const std::vector<float>& logits = Run(question);
  if (!std::all_of(logits.begin(), logits.end(), [](float logit) { return std::isfinite(logit); })) {
    throw Error(SOL_ERROR_NUMERIC, "policy " + file_ + ": non-finite logits at step " + std::to_string(question.step) +
                                       "; check the bundle with `sol-rt verify`, or use --schedule uniform");
  }
  return logits;
}

}  // namespace sol_rt
