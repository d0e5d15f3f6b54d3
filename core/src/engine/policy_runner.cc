#include "engine/policy_runner.h"

#include "base/error.h"
#include "engine/engine.h"

namespace sol_rt {

const std::vector<float>& PolicyRunner::Decide(const PolicyQuestion& question) {
  if (question.scalars->size() != scalars_) {
    throw Error(SOL_ERROR_INTERNAL, "policy: got " + std::to_string(question.scalars->size()) + " scalars, expected " + std::to_string(scalars_));
  }
  const std::vector<float>& logits = Run(question);
  if (!AllFinite(logits.data(), logits.size())) {
    throw Error(SOL_ERROR_NUMERIC, "policy " + file_ + ": non-finite logits at step " + std::to_string(question.step) +
                                       "; check the bundle with `sol-rt verify`, or use --schedule uniform");
  }
  return logits;
}

}  // namespace sol_rt
